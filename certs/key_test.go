package certs_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/certs"
)

func request(t *testing.T, key crypto.Signer, hosts ...string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: hosts}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// hugeRequest is a request with an RSA key of so many bits. To check its signature
// would take seconds; nothing is right in it but its form.
func hugeRequest(t *testing.T, bits, exponent int) []byte {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits))
	n.Sub(n, big.NewInt(1))
	type publicKey struct {
		N *big.Int
		E int
	}
	key, err := asn1.Marshal(publicKey{n, exponent})
	if err != nil {
		t.Fatal(err)
	}
	null := asn1.RawValue{Tag: asn1.TagNull}
	type info struct {
		Version int
		Subject pkix.RDNSequence
		Key     struct {
			Algorithm pkix.AlgorithmIdentifier
			Bits      asn1.BitString
		}
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	var i info
	i.Key.Algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: null}
	i.Key.Bits = asn1.BitString{Bytes: key, BitLength: 8 * len(key)}
	der, err := asn1.Marshal(struct {
		Info      info
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{i, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: null}, asn1.BitString{Bytes: n.Bytes(), BitLength: 8 * len(n.Bytes())}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificateRequest(der); err != nil {
		t.Fatalf("the request of the test is no good: %v", err)
	}
	return der
}

func TestP21_KeysThatCostMuchOrLittle_AreRefusedBeforeTheirSignatureIsChecked(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	token, err := ca.NewToken(certs.TokenRequest{Uses: 100})
	if err != nil {
		t.Fatal(err)
	}
	on := func(c elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	modulus := func(bits int) crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"p256": request(t, on(elliptic.P256())), "p384": request(t, on(elliptic.P384())), "ed25519": request(t, edwards),
		"rsa2048": request(t, modulus(2048)), "rsa4096": request(t, modulus(4096)),
	} {
		if _, _, err := ca.Redeem(t.Context(), token, name, der, time.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, der := range map[string][]byte{
		"p224": request(t, on(elliptic.P224())), "p521": request(t, on(elliptic.P521())), "rsa1024": request(t, modulus(1024)),
		"rsa4097": hugeRequest(t, 4097, 65537), "rsa8192": hugeRequest(t, 8192, 65537), "rsa60000": hugeRequest(t, 60_000, 1<<31-1),
		"exponent": hugeRequest(t, 4096, 1<<31-1),
		"16KiB":    request(t, on(elliptic.P256()), strings.Repeat("a", 16<<10)),
	} {
		began := time.Now()
		if _, _, err := ca.Redeem(t.Context(), token, name, der, time.Now()); !errors.Is(err, certs.ErrCSR) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s took %v", name, time.Since(began))
	}
}

// TestP21_WithoutAToken_NothingElseIsLookedAt: neither the name, which would tell who is
// there, nor the request.
func TestP21_WithoutAToken_NothingElseIsLookedAt(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	folder(t, ca, certs.IssueRequest{Name: "w1", Role: certs.RoleWorker})
	for name, der := range map[string][]byte{
		"w1": csr(t), "w2": csr(t), "../w": csr(t), "w3": nil, "w4": []byte("garbage"), "w5": hugeRequest(t, 1<<20, 1<<31-1),
	} {
		if _, _, err := ca.Redeem(t.Context(), "nonsense", name, der, time.Now()); !errors.Is(err, certs.ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
