package client

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// DefaultAddress is where a scheduler is looked for when nothing names one.
const DefaultAddress = "127.0.0.1:7420"

// Flags are the connection flags of the command line; "" was not given.
type Flags struct {
	Address string
	Certs   string
	Context string
}

// Resolve finds the cluster to talk to. Address and certificate folder are
// found each for itself, the first of: flag, context of --context, environment,
// context of DROVER_CONTEXT, current context of the file, running dev cluster,
// the machine's own certificates. Certs is "" when nothing names a folder.
func Resolve(f Flags, getenv func(string) string) (Target, error) {
	t := Target{f.Address, f.Certs}
	file, err := LoadContexts(ConfigFile(getenv))
	if err != nil {
		return Target{}, err
	}
	if f.Context != "" {
		named, err := file.Find(f.Context)
		if err != nil {
			return Target{}, err
		}
		t.fill(named)
	}
	t.fill(Target{getenv("DROVER_ADDRESS"), getenv("DROVER_CERTS")})
	name := file.Current
	if env := getenv("DROVER_CONTEXT"); env != "" {
		name = env
	}
	if name != "" && f.Context == "" && !t.whole() {
		named, err := file.Find(name)
		if err != nil {
			return Target{}, err
		}
		t.fill(named)
	}
	if !t.whole() {
		t.fill(devCluster(getenv))
		t.fill(Target{DefaultAddress, ownCerts(getenv)})
	}
	return t, nil
}

func (t *Target) whole() bool { return t.Address != "" && t.Certs != "" }

// fill takes from other what t does not have yet.
func (t *Target) fill(other Target) {
	if t.Address == "" {
		t.Address = other.Address
	}
	if t.Certs == "" {
		t.Certs = other.Certs
	}
}

// DataFolder is where a user's own clusters and certificates lie.
func DataFolder(getenv func(string) string) string {
	base := getenv("XDG_DATA_HOME")
	if base == "" {
		base = filepath.Join(getenv("HOME"), ".local", "share")
	}
	return filepath.Join(base, "drover")
}

// devCluster reads what "drover dev" left for clients. A file that is missing
// or being replaced means that no dev cluster runs.
func devCluster(getenv func(string) string) Target {
	data, err := os.ReadFile(filepath.Join(DataFolder(getenv), "dev", "dev.json"))
	if err != nil {
		return Target{}
	}
	var dev struct {
		Address string `json:"address"`
		Certs   string `json:"certs"`
	}
	if json.Unmarshal(data, &dev) != nil {
		return Target{}
	}
	return Target{dev.Address, dev.Certs}
}

// ownCerts is the certificate folder of this machine or user, if it holds a pair.
func ownCerts(getenv func(string) string) string {
	for _, dir := range []string{filepath.Join(DataFolder(getenv), "certs"), "/etc/drover/certs"} {
		if _, err := os.Stat(filepath.Join(dir, "tls.crt")); err == nil {
			return dir
		}
	}
	return ""
}
