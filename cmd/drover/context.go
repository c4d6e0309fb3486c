package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"sync"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
)

func newContext(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "context", Aliases: []string{"contexts"}, Short: "Choose between clusters", Args: cobra.ArbitraryArgs, RunE: group,
		Long: "Choose between clusters. A context is a scheduler's address and a certificate folder; they\n" +
			"are kept in " + "~/.config/drover/config.yaml.",
	}
	cmd.AddCommand(newContextList(e), newContextUse(e), newContextAdd(e))
	return cmd
}

// contextRow is a context as JSON shows it.
type contextRow struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Certs   string `json:"certs"`
	Current bool   `json:"current"`
}

// Key implements render.Row.
func (c contextRow) Key() string { return c.Name }

// Label implements render.Row.
func (c contextRow) Label() string { return c.Name }

// Cells implements render.Row.
func (c contextRow) Cells(*render.Printer) []string {
	mark := ""
	if c.Current {
		mark = "*"
	}
	return []string{mark, term.Line(c.Name), term.Line(c.Address), term.Line(c.Certs)}
}

func newContextList(e *env) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List contexts, and what is in use now", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			p, err := o.printer(e)
			if err != nil {
				return err
			}
			all, err := client.LoadContexts(client.ConfigFile(e.getenv))
			if err != nil {
				return err
			}
			rows := make([]contextRow, 0, len(all.Contexts))
			for _, name := range all.Names() {
				t := all.Contexts[name]
				rows = append(rows, contextRow{name, t.Address, t.Certs, name == all.Current})
			}
			if err := render.List(p, []string{"CURRENT", "NAME", "ADDRESS", "CERTS"}, rows); err != nil {
				return err
			}
			if t, err := client.Resolve(e.target, e.getenv); err == nil && o.text() {
				fmt.Fprintf(e.stderr, "in use: %s with the certificate in %q\n", t.Address, t.Certs)
			}
			return nil
		},
	}
	o.register(cmd)
	return cmd
}

func newContextUse(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Choose the context that is used from now on", Args: exactly("NAME"), ValidArgsFunction: first(e.completeContexts),
		RunE: func(_ *cobra.Command, args []string) error {
			file := client.ConfigFile(e.getenv)
			all, err := client.LoadContexts(file)
			if err != nil {
				return err
			}
			t, err := all.Find(args[0])
			if err != nil {
				return err
			}
			all.Current = args[0]
			if err := all.Save(file); err != nil {
				return err
			}
			fmt.Fprintf(e.stdout, "using %s: %s\n", args[0], t.Address)
			return nil
		},
	}
}

// contextName is what needs no quoting anywhere.
var contextName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`) })

func newContextAdd(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "add NAME --address HOST:PORT --certs FOLDER", Short: "Add or change a context; the first one is used at once", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t := client.Target{Address: e.target.Address, Certs: e.target.Certs}
			switch {
			case !contextName().MatchString(args[0]):
				return problem.UsageError(verb(cmd), "name %q is not made of letters, digits, dots, dashes, underscores", args[0])
			case t.Address == "":
				return problem.UsageError(verb(cmd), "--address is missing")
			case t.Certs == "":
				return problem.UsageError(verb(cmd), "--certs is missing")
			}
			var err error
			if t.Certs, err = filepath.Abs(t.Certs); err != nil {
				return fmt.Errorf("find the certificate folder: %w", err)
			}
			if !utf8.ValidString(t.Address + t.Certs) {
				return problem.UsageError(verb(cmd), "address %q or folder %q is not UTF-8", t.Address, t.Certs)
			}
			file := client.ConfigFile(e.getenv)
			all, err := client.LoadContexts(file)
			if err != nil {
				return err
			}
			if all.Contexts == nil {
				all.Contexts = map[string]client.Target{}
			}
			all.Contexts[args[0]] = t
			if all.Current == "" {
				all.Current = args[0]
			}
			if err := all.Save(file); err != nil {
				return err
			}
			fmt.Fprintf(e.stdout, "added %s to %s\n", args[0], file)
			return nil
		},
	}
}
