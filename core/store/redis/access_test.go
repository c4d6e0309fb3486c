package redis_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store/redis"
	"github.com/droverhq/drover/core/store/redis/redistest"
)

// P1: whoever runs Redis with settings that lose records is told at the start.
func TestSettingsThatLoseRecordsAreWarnedOf(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"safe":             {nil, nil},
		"no journal":       {[]string{"--appendonly", "no"}, []string{"appendonly is no"}},
		"a second":         {[]string{"--appendfsync", "everysec"}, []string{"appendfsync is everysec"}},
		"not in a rewrite": {[]string{"--no-appendfsync-on-rewrite", "yes"}, []string{"no-appendfsync-on-rewrite is yes"}},
		"eviction":         {[]string{"--maxmemory-policy", "allkeys-lru"}, []string{"maxmemory-policy is allkeys-lru"}},
		"two":              {[]string{"--appendfsync", "no", "--maxmemory-policy", "volatile-ttl"}, []string{"appendfsync is no", "maxmemory-policy is volatile-ttl"}},
		"settings denied":  {strings.Fields("--user default on nopass ~* +@all -config"), []string{"its settings cannot be read"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := open(t, redistest.Start(t, tc.args...).URL()).Warnings()
			if len(got) != len(tc.want) {
				t.Fatalf("%q, want %q", got, tc.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tc.want[i]) {
					t.Errorf("%q, want %q", got[i], tc.want[i])
				}
			}
		})
	}
}

// acl is the user of docs/operations.md.
const acl = "drover on >SECRET ~{drover}:* +@read +@write +@scripting +@connection +info +config|get +time"

func withUser(url, user string) string { return strings.Replace(url, "//", "//"+user+"@", 1) }

func TestAUserOfAnACLNeedsNoMoreThanTheDocumentsSay(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, strings.Fields("--user default off --user "+acl)...)
	s := open(t, withUser(server.URL(), "drover:SECRET"))
	if w := s.Warnings(); len(w) > 0 {
		t.Error(w)
	}
	if err := put(t, s, "k", "v"); err != nil {
		t.Error(err)
	}
	if v, err := s.Get(t.Context(), []byte("k")); err != nil || string(v) != "v" {
		t.Errorf("%q, %v", v, err)
	}
	if n := len(all(t, s)); n != 1 {
		t.Errorf("%d pairs", n)
	}
	if _, err := s.Acquire(t.Context(), "name", time.Hour); err != nil {
		t.Error(err)
	}
}

// Whoever is refused learns it at once, with a hint, and the password is in
// neither the error nor the log.
func TestRefusedAtOnceAndThePasswordIsNotTold(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, strings.Fields("--user default off --user "+acl+" --user reader on >SECRET ~* +@read +info +config")...)
	for name, url := range map[string]string{
		"no password":    server.URL("patience=1h"),
		"wrong password": withUser(server.URL("patience=1h"), "drover:SECRET-BUT-WRONG"),
		"wrong user":     withUser(server.URL("patience=1h"), "nobody:SECRET"),
		"other keys":     withUser(server.URL("patience=1h", "prefix=other"), "drover:SECRET"),
		"reads only":     withUser(server.URL("patience=1h"), "reader:SECRET"),
	} {
		log := newJournal()
		c := config(t, url)
		c.Log = log.log()
		s, err := redis.Open(t.Context(), c)
		if err == nil {
			err = put(t, s, "k", "v")
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		var e *errs.Error
		if !errors.As(err, &e) || e.Reason != "STORE_DENIED" || e.Kind != errs.Precondition || e.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
		if text := err.Error() + log.String(); strings.Contains(text, "SECRET") {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// A password can be changed while the store is in use.
func TestThePasswordFileIsReadForEachConnection(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	write := func(password string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	server := redistest.Start(t, "--requirepass", "one")
	s := open(t, server.URL("password_file="+file))
	if err := put(t, s, "k", "v"); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	server.Change(t, "--requirepass", "two")
	write("two")
	if err := put(t, s, "k", "w"); err != nil {
		t.Error(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := redis.Open(t.Context(), config(t, server.URL("patience=1h", "password_file="+file))); errs.ReasonOf(err) != "STORE_PASSWORD" {
		t.Errorf("without the file: %v", err)
	}
}

// issue makes a certificate for 127.0.0.1 and returns the files.
func issue(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// TLS, with a certificate of the client's too. A server that is not trusted is
// refused at once.
func TestTLS(t *testing.T) {
	t.Parallel()
	cert, key := issue(t, t.TempDir())
	other, _ := issue(t, t.TempDir())
	port := redistest.Port(t)
	redistest.Start(t, "--tls-port", port, "--bind", "127.0.0.1", "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert)
	at := "rediss://127.0.0.1:" + port + "?patience=1h&ca="
	s := open(t, at+cert+"&cert="+cert+"&key="+key)
	if err := put(t, s, "k", "v"); err != nil {
		t.Error(err)
	}
	_, err := redis.Open(t.Context(), config(t, at+other))
	var trust *tls.CertificateVerificationError
	if !errors.As(err, &trust) {
		t.Errorf("another CA: %v", err)
	}
}
