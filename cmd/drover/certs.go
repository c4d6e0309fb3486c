package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/certs"
	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/cmd/drover/internal/render"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

func newCerts(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "certs", Aliases: []string{"cert"}, Short: "Make and manage certificates", Args: cobra.ArbitraryArgs, RunE: group,
		Long: "Make and manage the certificates of a cluster. Everything that speaks to a scheduler or\n" +
			"worker has one; its role says what it may do: " + roleNames() + ".",
	}
	cmd.AddCommand(newCertsInit(e), newCertsToken(e), newCertsJoin(e), newCertsIssue(e), newCertsList(e), newCertsRenew(e), newCertsRevoke(e))
	return cmd
}

func roleNames() string {
	names := make([]string, 0, len(certs.Roles()))
	for _, r := range certs.Roles() {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// caFlag registers --ca.
func (e *env) caFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "ca", "", "`folder` of the CA (DROVER_CA)")
}

func (e *env) caIn(dir string) string {
	if dir == "" {
		return e.caFolder()
	}
	return dir
}

// openCA opens the CA that a command works with.
func (e *env) openCA(dir string) (*certs.CA, error) {
	ca, err := certs.OpenCA(e.caIn(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.E("open the CA", errs.NotFound, "NO_CA", fmt.Errorf("there is none in %s", e.caIn(dir))).
			WithHint(`make one with "drover certs init", or name its folder with --ca`)
	}
	return ca, certError("open the CA", err)
}

// certError classifies an error of the certs package.
func certError(op string, err error) error {
	kind := errs.Invalid
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist):
		kind = errs.Exists
	case errors.Is(err, fs.ErrNotExist):
		kind = errs.NotFound
	case errors.Is(err, certs.ErrToken):
		kind = errs.Unauthenticated
	case errors.Is(err, fs.ErrPermission):
		kind = errs.Internal
	}
	// The package says in front what it was doing; op is for errors that do not.
	before, after, found := strings.Cut(err.Error(), ": ")
	if !found {
		return errs.E(op, kind, "CERTIFICATE", err)
	}
	return errs.E(before, kind, "CERTIFICATE", errors.New(after))
}

func newCertsInit(e *env) *cobra.Command {
	var dir, cluster string
	cmd := &cobra.Command{
		Use: "init", Short: "Make a certificate authority for a cluster", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				dir = filepath.Join(e.certsFolder(), "ca")
			}
			ca, err := certs.Init(dir, cluster)
			if err != nil {
				return certError("make the CA", err)
			}
			fmt.Fprintf(e.stdout, "made the CA of the cluster %s in %s\n", ca.Cluster(), dir)
			fmt.Fprintln(e.stderr, `hint: next "drover certs issue NAME --role scheduler --host HOST", and one with --role admin for yourself`)
			return nil
		},
	}
	e.caFlag(cmd, &dir)
	cmd.Flags().StringVar(&cluster, "cluster", "drover", "`name` of the cluster")
	return cmd
}

func newCertsToken(e *env) *cobra.Command {
	var dir, role string
	var ttl duration
	var uses int
	cmd := &cobra.Command{
		Use: "token", Short: "Make a one-time token with which a worker joins", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			ca, err := e.openCA(dir)
			if err != nil {
				return err
			}
			token, err := ca.NewToken(certs.TokenRequest{Role: certs.Role(role), TTL: ttl.value, Uses: uses})
			if err != nil {
				return certError("make a token", err)
			}
			fmt.Fprintln(e.stdout, token)
			return nil
		},
	}
	e.caFlag(cmd, &dir)
	f := cmd.Flags()
	f.StringVar(&role, "role", string(certs.RoleWorker), "role of who joins")
	f.Var(&ttl, "ttl", "how long the token is good (default 1h)")
	f.IntVar(&uses, "uses", 1, "how many may join with it")
	completeFlag(cmd, "role", fixed(string(certs.RoleWorker)))
	return cmd
}

func newCertsJoin(e *env) *cobra.Command {
	var name, out string
	cmd := &cobra.Command{
		Use: "join TOKEN", Short: "Trade a token for a worker certificate of this machine", Args: exactly("TOKEN"),
		Long: "Make a key on this machine and trade a token for a certificate of it. The scheduler must\nbe the one whose CA the token names.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.join(cmd.Context(), args[0], name, out)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "`name` of the worker (default: that of the host)")
	cmd.Flags().StringVar(&out, "out", "", "`folder` for the certificate (default: this machine's)")
	return cmd
}

func (e *env) join(ctx context.Context, text, name, out string) error {
	token, err := certs.ParseToken(text)
	if err != nil {
		return certError("join", err)
	}
	if out == "" {
		out = e.certsFolder()
	}
	if !certs.Missing(out) {
		return errs.E("join", errs.Exists, "CERTIFICATE", fmt.Errorf("%s holds a certificate already", out)).
			WithHint("choose another folder with --out")
	}
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return errs.E("join", errs.Invalid, "NAME", err).WithHint("give --name")
		}
	}
	t, err := client.Resolve(e.target, e.getenv)
	if err != nil {
		return err
	}
	c, err := client.DialToJoin(t.Address, token.Pin, version)
	if err != nil {
		return err
	}
	defer c.Close()
	j, err := certs.StartJoin(out)
	if err != nil {
		return certError("join", err)
	}
	if err := e.redeem(ctx, c, token, name, j); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "joined as %s; the certificate is in %s\n", name, out)
	return nil
}

func (e *env) redeem(ctx context.Context, c *client.Client, token certs.Token, name string, j *certs.Joining) error {
	ctx, cancel := call(ctx)
	defer cancel()
	answer, err := c.Certificates.Join(ctx, &droverv1.JoinRequest{Token: token.Secret, Name: name, Csr: j.CSR})
	switch {
	case err == nil:
	case problem.Reported(err):
		return errors.Join(c.Explain("join", err), j.Refused())
	default: // the scheduler may have taken the token
		fmt.Fprintln(e.stderr, "drover: if the scheduler has taken the token, the same command gets the certificate when it is run again")
		return c.Explain("join", err)
	}
	if err := certs.CheckPin(answer.GetCa(), token.Pin); err != nil {
		return certError("join", err)
	}
	if err := j.Finish(answer.GetCertificate(), answer.GetCa()); err != nil {
		return certError("store the certificate", err)
	}
	return nil
}

func newCertsIssue(e *env) *cobra.Command {
	var dir, role, out string
	var hosts []string
	var ttl duration
	var noRenew bool
	cmd := &cobra.Command{
		Use: "issue NAME --role ROLE", Short: "Make a key and a certificate for it", Args: exactly("NAME"),
		Example: "  drover certs issue alice --role admin --out ~/.config/drover/alice\n  drover certs issue s1 --role scheduler --host drover.example.org",
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := e.openCA(dir)
			if err != nil {
				return err
			}
			parsed, err := certs.ParseRole(role)
			if err != nil {
				return errs.Field("issue a certificate", "--role", "ROLE", "%w", err)
			}
			if out == "" {
				out = filepath.Join(filepath.Dir(filepath.Clean(e.caIn(dir))), args[0])
			}
			if !certs.Missing(out) {
				return errs.E("issue a certificate", errs.Exists, "CERTIFICATE", fmt.Errorf("%s holds one already", out)).
					WithHint("choose another folder with --out")
			}
			err = ca.IssuePair(out, certs.IssueRequest{Name: args[0], Role: parsed, TTL: ttl.value, Hosts: hosts, NoRenew: noRenew})
			if taken := (*certs.NameTakenError)(nil); errors.As(err, &taken) {
				return errs.E("issue a certificate", errs.Exists, "NAME_TAKEN", taken).
					WithHint("choose another name, or revoke that one first: \"drover certs revoke %s/%s\"", taken.By.Role, taken.By.Name)
			}
			if err != nil {
				return certError("issue a certificate", err)
			}
			fmt.Fprintf(e.stdout, "issued %s in %s\n", certs.ID{Cluster: ca.Cluster(), Role: parsed, Name: args[0]}, out)
			return nil
		},
	}
	e.caFlag(cmd, &dir)
	f := cmd.Flags()
	f.StringVar(&role, "role", "", "what it may do: "+roleNames())
	f.StringVar(&out, "out", "", "`folder` for key and certificate (default: NAME beside the CA)")
	f.StringSliceVar(&hosts, "host", nil, "`name or address` of a scheduler or worker; repeatable")
	f.Var(&ttl, "ttl", "how long it is valid, and each renewal of it (default 90d)")
	f.BoolVar(&noRenew, "no-renew", false, "it cannot be renewed")
	completeFlag(cmd, "role", fixed(strings.Split(roleNames(), ", ")...))
	return cmd
}

// issued is a certificate as JSON shows it.
type issued struct {
	Name      string    `json:"name"`
	Role      string    `json:"role"`
	Serial    string    `json:"serial"`
	State     string    `json:"state"` // valid, expired or revoked
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Revoked   bool      `json:"revoked"`
}

// Key implements render.Row.
func (c issued) Key() string { return c.Serial }

// Label implements render.Row.
func (c issued) Label() string { return c.Name }

// Cells implements render.Row.
func (c issued) Cells(p *render.Printer) []string {
	colour := term.Green
	if c.State != "valid" {
		colour = term.Red
	}
	return []string{c.Name, c.Role, c.Serial, p.Palette.Paint(colour, c.State), c.NotAfter.UTC().Format(time.RFC3339)}
}

func newCertsList(e *env) *cobra.Command {
	var o output
	var dir string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the certificates that the CA has issued", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			p, err := o.printer(e)
			if err != nil {
				return err
			}
			ca, err := e.openCA(dir)
			if err != nil {
				return err
			}
			all, err := ca.List()
			if err != nil {
				return certError("list certificates", err)
			}
			rows := make([]issued, len(all))
			for i, c := range all {
				state := "valid"
				if e.now().After(c.NotAfter) {
					state = "expired"
				}
				if c.Revoked {
					state = "revoked"
				}
				rows[i] = issued{c.ID.Name, string(c.ID.Role), c.Serial, state, c.NotBefore, c.NotAfter, c.Revoked}
			}
			return render.List(p, []string{"NAME", "ROLE", "SERIAL", "STATE", "EXPIRES"}, rows)
		},
	}
	o.register(cmd)
	e.caFlag(cmd, &dir)
	return cmd
}

func newCertsRenew(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "renew", Short: "Replace your certificate by a fresh one of the same identity", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withClient(func(c *client.Client) error { return e.renew(cmd.Context(), c) })
		},
	}
}

func (e *env) renew(ctx context.Context, c *client.Client) error {
	t, err := client.Resolve(e.target, e.getenv)
	if err != nil {
		return err
	}
	source, err := certs.NewSource(t.Certs, slog.New(slog.DiscardHandler))
	if err != nil {
		return certError("renew the certificate", err)
	}
	ctx, cancel := call(ctx)
	defer cancel()
	r := &certs.Renewer{
		Source: source, Log: slog.New(slog.DiscardHandler),
		Renew: func(ctx context.Context, csr []byte) (cert, bundle []byte, err error) {
			answer, err := c.Certificates.Renew(ctx, &droverv1.RenewRequest{Csr: csr})
			return answer.GetCertificate(), answer.GetCa(), c.Explain("renew the certificate", err)
		},
	}
	if err := r.Now(ctx); err != nil {
		inner := (*errs.Error)(nil)
		switch {
		case errs.ReasonOf(err) == "TOO_SOON" && errors.As(err, &inner):
			fmt.Fprintf(e.stdout, "not renewed: %v; it is valid until %s\n", inner.Err, source.Leaf().NotAfter.UTC().Format(time.RFC3339))
			return nil
		case errors.As(err, &inner):
			return inner
		}
		return certError("renew the certificate", err)
	}
	fmt.Fprintf(e.stdout, "renewed %s until %s\n", source.ID(), source.Leaf().NotAfter.UTC().Format(time.RFC3339))
	return nil
}

func newCertsRevoke(e *env) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "revoke NAME|SERIAL", Short: "Revoke a certificate, or all of a name", Args: exactly("NAME|SERIAL"),
		Long: "Revoke a certificate, or all of a name. Connections that use it are closed within seconds, at\n" +
			"the scheduler and at its workers. A scheduler that runs without --ca takes the list from its\n" +
			"certificate folder: copy crl.pem there.",
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := e.openCA(dir)
			if err != nil {
				return err
			}
			serials, err := ca.Revoke(args[0])
			if unknown := (*certs.UnknownError)(nil); errors.As(err, &unknown) {
				return errs.E("revoke", errs.NotFound, "CERTIFICATE_UNKNOWN", unknown).
					WithHint("\"drover certs ls --ca %s\" lists those that this CA has issued", filepath.Dir(ca.RevokedFile()))
			}
			if err != nil {
				return certError("revoke", err)
			}
			for _, s := range serials {
				fmt.Fprintf(e.stdout, "revoked %s\n", s)
			}
			if why := ca.Crowded(); why != "" {
				fmt.Fprintln(e.stderr, "drover: "+why)
			}
			return nil
		},
	}
	e.caFlag(cmd, &dir)
	return cmd
}
