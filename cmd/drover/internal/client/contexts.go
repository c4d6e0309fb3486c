package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/yamlfile"
	"github.com/droverhq/drover/plugins/durable"
)

// Target is how one cluster is reached.
type Target struct {
	Address string `yaml:"address,omitempty" json:"address,omitempty"` // host:port of the scheduler; of several, with commas between
	Certs   string `yaml:"certs,omitempty" json:"certs,omitempty"`     // folder of the own certificate
}

// Contexts is the file ~/.config/drover/config.yaml: clusters by name.
type Contexts struct {
	Current  string            `yaml:"current,omitempty" json:"current,omitempty"`
	Contexts map[string]Target `yaml:"contexts,omitempty" json:"contexts,omitempty"`
}

// ConfigFile is where the contexts lie.
func ConfigFile(getenv func(string) string) string {
	base := getenv("XDG_CONFIG_HOME")
	if base == "" {
		base = filepath.Join(getenv("HOME"), ".config")
	}
	return filepath.Join(base, "drover", "config.yaml")
}

// LoadContexts reads the file; a missing one is empty. An unknown key is an
// error with its line.
func LoadContexts(file string) (Contexts, error) {
	var c Contexts
	data, err := yamlfile.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, errs.E("read contexts", errs.Invalid, "CONFIG_UNREADABLE", err)
	}
	if err := yamlfile.Decode(file, data, &c); err != nil {
		return Contexts{}, errs.E("read contexts", errs.Invalid, "CONFIG_SYNTAX", err).
			WithHint("known keys: current, contexts; of a context: address, certs")
	}
	return c, nil
}

// Save replaces the file whole.
func (c Contexts) Save(file string) error {
	data, err := json.Marshal(c)
	if err == nil {
		data, err = render.YAMLFromJSON(data)
	}
	if err != nil {
		return fmt.Errorf("encode contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	if err := durable.Write(file, data, 0o600); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	return nil
}

// Names lists the contexts in order.
func (c Contexts) Names() []string {
	names := make([]string, 0, len(c.Contexts))
	for n := range c.Contexts {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Find returns one context.
func (c Contexts) Find(name string) (Target, error) {
	t, ok := c.Contexts[name]
	if !ok {
		return Target{}, errs.E("choose a context", errs.NotFound, "CONTEXT_UNKNOWN", fmt.Errorf("there is no context %q", name)).
			WithHint(`"drover context ls" lists them, "drover context add" makes one`)
	}
	return t, nil
}
