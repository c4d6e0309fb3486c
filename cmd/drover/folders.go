package main

import (
	"os"
	"path/filepath"

	"github.com/droverhq/drover/cmd/drover/internal/client"
)

// Folders of this machine for root; others have their own below the data folder.
const (
	systemPlugins = "/usr/lib/drover/plugins"
	systemCerts   = "/etc/drover/certs"
)

// pluginFolder is where plugins are kept when --dir does not say it: the dev
// cluster's folder when there is one and no other cluster was chosen, because
// that is the worker that people try things on.
func (e *env) pluginFolder() string {
	if dir := e.getenv("DROVER_PLUGINS"); dir != "" {
		return dir
	}
	dev := filepath.Join(client.DataFolder(e.getenv), "dev", "plugins")
	if e.target == (client.Flags{}) && exists(dev) {
		return dev
	}
	return e.own(systemPlugins, "plugins")
}

// caFolder is where the CA lies when --ca does not say it: the machine's, or
// that of the dev cluster.
func (e *env) caFolder() string {
	if dir := e.getenv("DROVER_CA"); dir != "" {
		return dir
	}
	own := filepath.Join(e.certsFolder(), "ca")
	dev := filepath.Join(client.DataFolder(e.getenv), "dev", "certs", "ca")
	if !exists(filepath.Join(own, "ca.key")) && exists(filepath.Join(dev, "ca.key")) {
		return dev
	}
	return own
}

// certsFolder is where the certificate of this machine or user lies.
func (e *env) certsFolder() string { return e.own(systemCerts, "certs") }

// own is a folder of the machine for root, and of the user for others.
func (e *env) own(system, name string) string {
	if os.Geteuid() == 0 {
		return system
	}
	return filepath.Join(client.DataFolder(e.getenv), name)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
