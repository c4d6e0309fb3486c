package certs

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Rotate gives the CA a new key. Nothing has to happen at the same time
// elsewhere: the new CA joins the old one in ca.crt, and what it signs carries
// a link, the new CA signed by the old, by which peers that know only the old
// one trust it. Certificates move over as they are renewed; Retire ends it.
func (ca *CA) Rotate(now time.Time) error {
	unlock, err := lockFolder(ca.dir)
	if err != nil {
		return fmt.Errorf("rotate the CA: %w", err)
	}
	defer unlock()
	old, err := ca.load()
	if err != nil {
		return fmt.Errorf("rotate the CA: %w", err)
	}
	if len(old.trust) > 1 {
		return fmt.Errorf("rotate the CA: the last rotation is not over; retire the old CA first")
	}
	cert, key, err := newAuthority(ca.cluster, now)
	if err != nil {
		return fmt.Errorf("rotate the CA: %w", err)
	}
	template := *cert
	if template.SerialNumber, err = newSerial(); err != nil {
		return fmt.Errorf("rotate the CA: %w", err)
	}
	template.MaxPathLen, template.MaxPathLenZero = 0, true
	template.NotAfter = old.cert.NotAfter
	link, err := sign(&template, old.cert, key.Public(), old.key)
	if err != nil {
		return fmt.Errorf("rotate the CA: %w", err)
	}
	// The key comes last. Before it the CA is the old one with a spare
	// certificate in ca.crt and a link that helps nobody.
	trust := append([]*x509.Certificate{cert}, old.trust...)
	if err := writeFile(ca.BundleFile(), encodeCerts(trust), 0o644); err != nil {
		return fmt.Errorf("rotate the CA: %w", err)
	}
	if err := writeFile(ca.file("chain.crt"), encodeCert(link.Raw), 0o644); err != nil {
		return fmt.Errorf("rotate the CA: %w", err)
	}
	if err := writeKey(ca.dir, key); err != nil {
		return err
	}
	// The list that the old key signed would not outlive the old CA.
	return ca.signRevoked(nil)
}

// Retire drops every CA but the present one from ca.crt. It refuses, with the
// names, while certificates of the others are in force.
func (ca *CA) Retire(now time.Time) error {
	unlock, err := lockFolder(ca.dir)
	if err != nil {
		return fmt.Errorf("retire the old CA: %w", err)
	}
	defer unlock()
	a, err := ca.load()
	if err != nil {
		return fmt.Errorf("retire the old CA: %w", err)
	}
	all, err := ca.List()
	if err != nil {
		return fmt.Errorf("retire the old CA: %w", err)
	}
	var names []string
	for _, c := range all {
		if c.InForce(now) && c.cert.CheckSignatureFrom(a.cert) != nil {
			names = append(names, string(c.ID.Role)+"/"+c.ID.Name)
		}
	}
	if len(names) > 0 {
		slices.Sort(names)
		return fmt.Errorf("retire the old CA: its certificates are in force: %s; renew or revoke them first", strings.Join(slices.Compact(names), ", "))
	}
	if err := writeFile(ca.BundleFile(), encodeCert(a.cert.Raw), 0o644); err != nil {
		return fmt.Errorf("retire the old CA: %w", err)
	}
	return nil
}
