package redis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/plugins/ownership"
)

// Schemes of the URLs that ParseURL takes.
const (
	schemePlain = "redis"
	schemeTLS   = "rediss"
	schemeUnix  = "redis+unix"
)

// Environment variables that hold a password, or name the file that does.
const (
	EnvPassword     = "DROVER_REDIS_PASSWORD"
	EnvPasswordFile = "DROVER_REDIS_PASSWORD_FILE"
)

const (
	defaultPrefix = "drover"
	defaultPort   = "6379"
)

// Config says where the store is and how to reach it.
type Config struct {
	Network  string // "tcp" or "unix"
	Address  string // host:port, or the path of the socket
	TLS      *tls.Config
	User     string // of the ACL; "" is Redis' default user
	Password string
	// PasswordFile is read for each new connection, so that a password can be
	// changed while the scheduler runs. It takes the place of Password.
	PasswordFile string
	DB           int
	Prefix       string        // of all keys; two clusters may share a Redis. "": drover
	Timeout      time.Duration // of a dial, a read, a write; 0: 5 s
	Pool         int           // most connections; 0: 16
	// Patience is for how long a call goes on trying while Redis cannot be
	// reached or is loading; 0: 30 s.
	Patience time.Duration
	// Await makes a batch that Redis refuses, because it is full, a replica, or cannot
	// write its files, wait until it is taken. Otherwise it is an error.
	Await bool
	// Seen is a file of this scheduler that keeps how new the store was; "": none.
	Seen string
	Log  *slog.Logger // nil: silent
}

// IsURL tells whether a setting is meant as a URL of this engine.
func IsURL(s string) bool {
	scheme, _, ok := strings.Cut(s, "://")
	return ok && slices.Contains([]string{schemePlain, schemeTLS, schemeUnix}, strings.ToLower(scheme))
}

// Redact returns a URL without its password, to be shown.
func Redact(s string) string {
	if !IsURL(s) {
		return s
	}
	u, err := url.Parse(s)
	if err != nil {
		scheme, _, _ := strings.Cut(s, "://")
		return scheme + "://..."
	}
	return u.Redacted()
}

// urlError never quotes the URL: it may hold a password.
func urlError(format string, args ...any) *errs.Error {
	return errs.Field(opOpen, "store", "STORE_URL", format, args...).
		WithHint("it looks like redis://USER@HOST:6379/0, rediss://USER@HOST:6379/0 or redis+unix:///run/redis.sock; the password is best in %s", EnvPasswordFile)
}

// ParseURL reads redis://, rediss:// (TLS) and redis+unix:// URLs with the
// parameters prefix, db, pool, timeout, patience, password_file, ca, cert and
// key. A password comes from password_file, else from the URL, else from the
// environment. Mistakes are Invalid, reason STORE_URL.
func ParseURL(raw string, getenv func(string) string) (Config, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" {
		return Config{}, urlError("it is no URL")
	}
	c := Config{Network: "tcp", Prefix: defaultPrefix, User: u.User.Username()}
	db := strings.Trim(u.Path, "/")
	switch u.Scheme {
	case schemePlain, schemeTLS:
		if u.Hostname() == "" {
			return Config{}, urlError("it names no host")
		}
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		c.Address = net.JoinHostPort(u.Hostname(), port)
	case schemeUnix:
		c.Network, c.Address, db = "unix", u.Path, ""
		if u.Host != "" || u.Path == "" {
			return Config{}, urlError("it names no socket: three slashes come before its path")
		}
	default:
		return Config{}, urlError("it begins with none of redis://, rediss://, redis+unix://")
	}
	if err := c.parameters(u, db); err != nil {
		return Config{}, err
	}
	c.credentials(u, getenv)
	return c, nil
}

// parameters reads what follows the question mark.
func (c *Config) parameters(u *url.URL, db string) error {
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return urlError("its parameters cannot be read")
	}
	var ca, cert, key string
	for name, values := range query {
		v := values[len(values)-1]
		var err error
		switch name {
		case "prefix":
			c.Prefix = v
		case "db":
			db = v
		case "pool":
			c.Pool, err = strconv.Atoi(v)
		case "timeout":
			c.Timeout, err = time.ParseDuration(v)
		case "patience":
			c.Patience, err = time.ParseDuration(v)
		case "password_file":
			c.PasswordFile = v
		case "ca":
			ca = v
		case "cert":
			cert = v
		case "key":
			key = v
		default:
			return urlError("there is no parameter %q", name)
		}
		if err != nil || c.Pool < 0 || c.Timeout < 0 || c.Patience < 0 {
			return urlError("the parameter %s is %q", name, v)
		}
	}
	if db != "" {
		if c.DB, err = strconv.Atoi(db); err != nil || c.DB < 0 {
			return urlError("the number of its database is %q", db)
		}
	}
	if !regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`).MatchString(c.Prefix) {
		return urlError("the prefix must be 1 to 64 letters, digits, dots, dashes")
	}
	if u.Scheme != schemeTLS {
		if ca+cert+key != "" {
			return urlError("ca, cert and key are for rediss:// only")
		}
		return nil
	}
	c.TLS, err = tlsConfig(u.Hostname(), ca, cert, key)
	return err
}

func (c *Config) credentials(u *url.URL, getenv func(string) string) {
	password, given := u.User.Password()
	switch {
	case c.PasswordFile != "":
	case given:
		c.Password = password
	case getenv(EnvPasswordFile) != "":
		c.PasswordFile = getenv(EnvPasswordFile)
	default:
		c.Password = getenv(EnvPassword)
	}
}

// tlsConfig trusts the system's authorities, or only those of a file.
func tlsConfig(host, ca, cert, key string) (*tls.Config, error) {
	c := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12} // servers with TLS 1.2 only are common
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, errs.E(opOpen, errs.Precondition, "STORE_CA", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errs.E(opOpen, errs.Precondition, "STORE_CA", fmt.Errorf("%s holds no certificate", ca))
		}
	}
	if cert == "" && key == "" {
		return c, nil
	}
	if cert == "" || key == "" {
		return nil, urlError("cert and key go together")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, errs.E(opOpen, errs.Precondition, "STORE_CERTIFICATE", err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// password is what a new connection says.
func (c *Config) password() (string, error) {
	if c.PasswordFile == "" {
		return c.Password, nil
	}
	text, err := ownership.ReadSecret(c.PasswordFile)
	if err != nil {
		return "", errs.E(opOpen, errs.Precondition, "STORE_PASSWORD", fmt.Errorf("read the password: %w", err))
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" {
		return "", errs.E(opOpen, errs.Precondition, "STORE_PASSWORD", errors.New("read the password: the file is empty"))
	}
	return password, nil
}
