package certs

import (
	"errors"
	"strings"
	"time"
)

// Explain turns the error of a refused handshake into a reason of one line that
// says what to do. It understands the errors of this package, alerts of the
// other side, and both when only their words are left, as in a gRPC status. ""
// means that the error is not about certificates.
func Explain(err error) string {
	if err == nil {
		return ""
	}
	var refused *RefusedError
	if errors.As(err, &refused) {
		return "this side does not trust the server: " + oneLine(refused.Why)
	}
	said := err.Error()
	if _, alert, ok := strings.Cut(said, "remote error: tls: "); ok {
		return alertReason(strings.Trim(oneLine(alert), `"' `))
	}
	if _, why, ok := strings.Cut(said, refusedPrefix); ok {
		return "this side does not trust the server: " + strings.Trim(oneLine(why), `"' `)
	}
	switch {
	case errors.Is(err, ErrToken):
		return oneLine(said)
	case strings.Contains(said, "first record does not look like a TLS handshake"):
		return "the server does not speak TLS; is the address right?"
	case strings.Contains(said, "tls: server selected unsupported protocol version"),
		strings.Contains(said, "tls: protocol version not supported"):
		return "the server does not speak TLS 1.3; is the address right?"
	}
	return ""
}

// alertReason reads the alert (RFC 8446, 6.2) that begins a text.
func alertReason(alert string) string {
	const untrusted = "the server does not trust this certificate: "
	for _, a := range []struct{ alert, why string }{
		{"expired certificate", untrusted + "it has expired, or the clocks of the two machines differ; renew it or ask an admin for a new one"},
		{"unknown certificate authority", untrusted + "it was signed by another CA; is it of another cluster?"},
		{"revoked certificate", untrusted + "it was revoked; ask an admin for a new one"},
		{"bad certificate", untrusted + "it was revoked, is of another cluster or not one of drover's; ask an admin for a new one"},
		{"unsupported certificate", untrusted + "it is not a client's; ask an admin for a new one"},
		{"unknown certificate", untrusted + "ask an admin for a new one"},
		{"certificate required", "the server asks for a certificate; give its folder with --certs or DROVER_CERTS"},
		{"protocol version not supported", "the server does not speak TLS 1.3; is the address right?"},
		{"no application protocol", "the server does not speak gRPC; is the address right?"},
	} {
		if strings.HasPrefix(alert, a.alert) {
			return a.why
		}
	}
	return "the server refused the connection: " + alert
}

// Explain is Explain with what the Source knows of its own certificate: when it
// expired, and whether it is on a list of revoked ones here.
func (s *Source) Explain(err error) string {
	why := Explain(err)
	const untrusted = "the server does not trust this certificate: "
	if !strings.HasPrefix(why, untrusted) {
		return why
	}
	m := s.material()
	leaf := m.pair.leaf()
	switch {
	case m.revoked[Serial(leaf)]:
		return untrusted + m.pair.id.String() + " was revoked; ask an admin for a new one"
	case time.Now().After(leaf.NotAfter) || time.Now().Before(leaf.NotBefore):
		return untrusted + m.pair.id.String() + " " + outOfTime(leaf)
	case strings.Contains(err.Error(), "unknown certificate authority"):
		return untrusted + m.pair.id.String() + " was signed by another CA; is it of another cluster?"
	}
	return why
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
