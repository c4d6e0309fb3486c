// Package config fills the flags of a daemon from its environment and its
// configuration file and remembers where each value came from.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/yamlfile"
)

// Origin says where the value of a flag came from: "flag", "environment NAME",
// "FILE:LINE" or "default".
type Origin map[string]string

// Loader fills flags. A flag --data-dir has the environment variable
// PREFIX_DATA_DIR and the configuration key data_dir.
type Loader struct {
	Prefix  string                              // DROVER_WORKER
	Lookup  func(name string) (string, bool)    // os.LookupEnv
	Read    func(name string) ([]byte, error)   // yamlfile.Read
	Exclude []string                            // flags that are not settings, such as config itself
	skip    func(f *pflag.Flag) (excluded bool) // from Exclude
}

// New returns a Loader on the process's environment and files.
func New(prefix string, exclude ...string) *Loader {
	return &Loader{Prefix: prefix, Lookup: os.LookupEnv, Read: yamlfile.Read, Exclude: exclude}
}

// Load sets every flag of fs that was not given on the command line from the
// environment, else from file ("" is none). It changes nothing when file has a
// mistake; the error names file, line, key and the nearest known key.
func (l *Loader) Load(fs *pflag.FlagSet, file string) (Origin, error) {
	l.skip = func(f *pflag.Flag) bool { return f.Name == "help" || slices.Contains(l.Exclude, f.Name) }
	values, err := l.parse(fs, file)
	if err != nil {
		return nil, err
	}
	origin := Origin{}
	var failure error
	fs.VisitAll(func(f *pflag.Flag) {
		if failure != nil || l.skip(f) {
			return
		}
		origin[f.Name], failure = l.fill(f, file, values)
	})
	if failure == nil {
		failure = l.checkText(fs)
	}
	return origin, failure
}

// checkText refuses values that are not UTF-8: what a daemon tells others is text.
func (l *Loader) checkText(fs *pflag.FlagSet) error {
	var failure error
	fs.VisitAll(func(f *pflag.Flag) {
		if text := f.Value.String(); failure == nil && !l.skip(f) && !utf8.ValidString(text) {
			failure = errs.Field("read configuration", "--"+f.Name, "CONFIG_VALUE", "%q is not UTF-8", text)
		}
	})
	return failure
}

// fill sets one flag and tells its origin.
func (l *Loader) fill(f *pflag.Flag, file string, values map[string]value) (string, error) {
	if f.Changed {
		return "flag", nil
	}
	name := l.Prefix + "_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
	if text, ok := l.Lookup(name); ok {
		if err := f.Value.Set(text); err != nil {
			return "", errs.Field("read environment", name, "CONFIG_VALUE", "%w", Mistake(f, text, err))
		}
		return "environment " + name, nil
	}
	v, ok := values[f.Name]
	if !ok {
		return "default", nil
	}
	at := fmt.Sprintf("%s:%d", file, v.line)
	for _, text := range v.texts {
		if err := f.Value.Set(text); err != nil {
			return "", errs.Field("read "+at, key(f.Name), "CONFIG_VALUE", "%w", Mistake(f, text, err))
		}
	}
	return at, nil
}

// Mistake says what is wanted of a flag that does not take a text. The errors of the
// standard library say which function of it did not like it; others are kept.
func Mistake(f *pflag.Flag, text string, err error) error {
	wanted := ""
	switch f.Value.Type() {
	case "int", "int64", "int32":
		wanted = "a whole number"
	case "uint", "uint64", "uint32":
		wanted = "a whole number from 0 on"
	case "float64":
		wanted = "a number"
	case "bool":
		wanted = "true or false"
	case "duration":
		wanted = "a duration such as 30s, 1m30s or 2h"
	}
	outOfRange := errors.Is(err, strconv.ErrRange)
	switch raw := errors.Is(err, strconv.ErrSyntax) || strings.HasPrefix(err.Error(), "time: "); {
	case strings.Contains(err.Error(), strconv.Quote(text)) && !raw && !outOfRange:
		return err
	case wanted == "" || !raw && !outOfRange:
		return fmt.Errorf("%q: %w", text, err)
	case outOfRange:
		return fmt.Errorf("%q is too large or too small for %s", text, wanted)
	default:
		return fmt.Errorf("%q is not %s", text, wanted)
	}
}

// value is what the file says for one key.
type value struct {
	texts []string // one per element of a list or pair of a mapping
	line  int
}

func (l *Loader) parse(fs *pflag.FlagSet, file string) (map[string]value, error) {
	values := map[string]value{}
	if file == "" {
		return values, nil
	}
	data, err := l.Read(file)
	if err != nil {
		return nil, errs.E("read configuration", errs.Invalid, "CONFIG_UNREADABLE", err).WithHint("restore the file, or start without --config")
	}
	settings, err := yamlfile.Settings(file, data)
	if err != nil {
		return nil, malformed(err)
	}
	var known []string
	fs.VisitAll(func(f *pflag.Flag) {
		if !l.skip(f) {
			known = append(known, key(f.Name))
		}
	})
	for _, s := range settings {
		if !slices.Contains(known, s.Key) {
			return nil, unknownKey(file, s.Line, s.Key, known)
		}
		values[strings.ReplaceAll(s.Key, "_", "-")] = value{texts: s.Values, line: s.Line}
	}
	return values, nil
}

func malformed(err error) error {
	var at *yamlfile.Error
	if !errors.As(err, &at) {
		return errs.E("read configuration", errs.Invalid, "CONFIG_SYNTAX", err)
	}
	return errs.E("read "+at.Place(), errs.Invalid, "CONFIG_SYNTAX", errors.New(at.Text)).
		WithHint("the file is a list of \"key: value\" lines in YAML")
}

func unknownKey(file string, line int, name string, known []string) error {
	e := errs.Field(fmt.Sprintf("read %s:%d", file, line), name, "CONFIG_KEY", "there is no such key")
	return e.WithHint("did you mean %q? known keys: %s", yamlfile.Nearest(name, known), strings.Join(known, ", "))
}

func key(flag string) string { return strings.ReplaceAll(flag, "-", "_") }

// Print writes every setting of fs with its value and origin, one per line.
func Print(w io.Writer, fs *pflag.FlagSet, origin Origin) error {
	var failure error
	fs.VisitAll(func(f *pflag.Flag) {
		from, ok := origin[f.Name]
		if !ok || failure != nil {
			return
		}
		_, failure = fmt.Fprintf(w, "%s: %s  # %s\n", key(f.Name), f.Value.String(), from)
	})
	return failure
}
