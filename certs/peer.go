package certs

import (
	"crypto/tls"
	"crypto/x509"
	"time"
)

// Peer is the other side of a connection. A handshake judges it once; Check
// judges it again for as long as the connection lasts. One goroutine at a time
// may use it.
type Peer struct {
	source *Source
	usage  x509.ExtKeyUsage
	own    *x509.Certificate   // that this side showed
	chain  []*x509.Certificate // that the other side showed

	judged *material // the state that the last Check saw
	trust  *trust    // the CAs that the chain was verified with
	until  time.Time // when a certificate that matters ends
}

// ExpectClient begins a Peer that dials this process. Call it before the
// handshake: what changes from then on is seen by the first Check.
func (s *Source) ExpectClient() *Peer { return s.expectPeer(x509.ExtKeyUsageClientAuth) }

// ExpectServer begins a Peer that this process dials.
func (s *Source) ExpectServer() *Peer { return s.expectPeer(x509.ExtKeyUsageServerAuth) }

func (s *Source) expectPeer(usage x509.ExtKeyUsage) *Peer {
	m := s.material()
	return &Peer{source: s, usage: usage, own: m.pair.leaf(), trust: m.trust}
}

// Met tells a Peer what the handshake has shown. It returns false when the other
// side has no certificate: then there is nothing to judge.
func (p *Peer) Met(state tls.ConnectionState) bool {
	p.chain = state.PeerCertificates
	p.until = p.nextEnd(time.Now())
	return len(p.chain) > 0
}

// ID is the identity of the other side.
func (p *Peer) ID() ID {
	id, _ := Identify(p.chain[0]) // the handshake has refused what has none
	return id
}

// Until returns when Check has to look again though nothing changes.
func (p *Peer) Until() time.Time { return p.until }

// Check returns why a handshake would be refused now, or nil. It costs next to
// nothing while nothing has changed.
func (p *Peer) Check(now time.Time) error {
	m := p.source.material()
	ended := now.After(p.until)
	if m == p.judged && !ended {
		return nil
	}
	if now.After(p.own.NotAfter) {
		return refuse(nil, "the certificate that this side showed expired on %s", day(p.own.NotAfter))
	}
	if m.trust != p.trust || ended {
		if err := checkChain(p.chain, m.trust.pool, p.usage, now); err != nil {
			return err
		}
	}
	if _, err := m.admit(p.chain, p.usage); err != nil {
		return err
	}
	p.judged, p.trust = m, m.trust
	p.until = p.nextEnd(now)
	return nil
}

// nextEnd returns when the next of the certificates ends that the connection may
// depend on.
func (p *Peer) nextEnd(now time.Time) time.Time {
	end := p.own.NotAfter
	for _, cs := range [][]*x509.Certificate{p.chain, p.trust.cas} {
		for _, c := range cs {
			if c.NotAfter.After(now) && c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
	}
	return end
}
