package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

// FuzzParseToken: what is taken for a token is one that can be printed again, and
// its pin has the length of a sum.
func FuzzParseToken(f *testing.F) {
	pin := strings.Repeat("ab", 32)
	for _, s := range []string{"drover1.secret." + pin, " drover1.x." + strings.ToUpper(pin) + "\n", "drover1..", "drover2.a." + pin, "", "a.b.c.d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			return
		}
		if raw, err := hex.DecodeString(token.Pin); err != nil || len(raw) != 32 || token.Secret == "" {
			t.Fatalf("%q is taken for %+v", s, token)
		}
		if again, err := ParseToken(tokenPrefix + "." + token.Secret + "." + token.Pin); err != nil || again != token {
			t.Errorf("%+v is read back as %+v, %v", token, again, err)
		}
	})
}

// FuzzParseRevoked: a list that is taken has an entry for each line that is neither
// empty nor a comment: no line is passed over in silence.
func FuzzParseRevoked(f *testing.F) {
	for _, s := range []string{"", "# nobody\n", "0a1b2c worker/w1 2026-11-30\n", "AB:CD\nabcd\n", "xyz", "00\n", "0123\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseRevoked(data)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
				continue
			}
			serial, ok := parseSerial(fields[0])
			if raw, err := hex.DecodeString(serial); !ok || !list[serial] || err != nil || hex.EncodeToString(raw) != serial {
				t.Fatalf("the line %q is not in %v", line, list)
			}
		}
	})
}

// FuzzParseBundle: what is taken holds CA certificates only, and can be written and
// read again.
func FuzzParseBundle(f *testing.F) {
	ca, err := Init(f.TempDir(), "test")
	if err != nil {
		f.Fatal(err)
	}
	bundle, err := ca.Bundle()
	if err != nil {
		f.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	leaf, _, err := ca.Issue(IssueRequest{Name: "w", Role: RoleWorker, Public: key.Public()})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range [][]byte{bundle, slices.Concat(bundle, bundle), leaf, bundle[:len(bundle)/2], []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), nil} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cas, err := parseBundle(data)
		if err != nil {
			return
		}
		for _, c := range cas {
			if !c.IsCA {
				t.Fatalf("%v is no CA", c.Subject)
			}
			if _, err := Identify(c); err == nil {
				t.Errorf("a CA has the identity of a leaf")
			}
		}
		if again, err := parseBundle(encodeCerts(cas)); err != nil || len(again) != len(cas) {
			t.Errorf("%d certificates are read back as %d, %v", len(cas), len(again), err)
		}
	})
}

// FuzzRequest: only a bounded request that is signed by an accepted key gives a key.
func FuzzRequest(f *testing.F) {
	for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := csrKey(der)
		if err == nil && (checkKey(key) != nil || len(der) > maxCSR) {
			t.Errorf("a request with the key %T is taken", key)
		}
	})
}
