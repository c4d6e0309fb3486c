package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/daemon"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store/backup"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

func newSchedulerBackup(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Copy all records of a running scheduler into a file", Args: exactly("FILE"),
		Long: "backup copies jobs, request ids and workers as they are at one moment; the scheduler goes on.\n" +
			"Standard input, secrets and uploads are left out: a job that still needs them is rejected when the\n" +
			"copy is in use. \"drover store copy\" takes them along, from a scheduler that does not run.\n" +
			"The file appears whole and verified, or not at all; one that is there already is left alone.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(c *client.Client) error { return e.backup(cmd.Context(), c, args[0]) })
		},
	}
}

func (e *env) backup(ctx context.Context, c *client.Client, file string) (err error) {
	const op = "back up"
	if _, err := os.Lstat(file); err == nil {
		return errs.E(op, errs.Exists, "FILE_EXISTS", fmt.Errorf("%s is there already", file)).WithHint("give a new name")
	}
	part, err := os.CreateTemp(filepath.Dir(file), ".drover-backup-*")
	if err != nil {
		return errs.E(op, errs.Precondition, "FILE", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(part.Name()))
		}
	}()
	if err := receiveBackup(ctx, c, part); err != nil {
		return errors.Join(c.Explain(op, err), part.Close())
	}
	n, err := verifyBackup(part)
	if err := errors.Join(err, part.Sync(), part.Close()); err != nil {
		return errs.E(op, errs.KindOf(err), errs.ReasonOf(err), err)
	}
	// A link, unlike a rename, never takes the place of another file.
	if err := os.Link(part.Name(), file); err != nil {
		return errs.E(op, errs.Precondition, "FILE", err)
	}
	fmt.Fprintf(e.stderr, "%d records are in %s, without the standard input, secrets and uploads of jobs\n", n, file)
	return os.Remove(part.Name())
}

func receiveBackup(ctx context.Context, c *client.Client, to io.Writer) error {
	stream, err := c.Backup(ctx, &droverv1.BackupRequest{})
	if err != nil {
		return err
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := to.Write(part.GetData()); err != nil {
			return fmt.Errorf("write the backup: %w", err)
		}
	}
}

func verifyBackup(f *os.File) (uint64, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read the backup again: %w", err)
	}
	return backup.Verify(bufio.NewReader(f))
}

func newSchedulerRestore(e *env) *cobra.Command {
	o := daemon.RestoreOptions{Getenv: e.getenv}
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Put the records of a backup into an empty data folder", Args: exactly("FILE"),
		Long: "restore fills the store of a scheduler that does not run. Workers refuse a scheduler whose term is\n" +
			"lower than one that has commanded them, so an old copy cannot start a job a second time. When the\n" +
			"copy is to be in force all the same, give a --term above the one that the refusal tells, or use\n" +
			"\"drover store accept\" afterwards.",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.File = args[0]
			n, err := daemon.Restore(cmd.Context(), o, slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelError})))
			if errors.Is(err, fs.ErrNotExist) {
				return errs.E("restore the backup", errs.NotFound, "FILE", err)
			}
			if err != nil {
				return err
			}
			if o.Store == "embedded" {
				fmt.Fprintf(e.stderr, "%d records are in %s; start the scheduler with that --data\n", n, o.Data)
			} else {
				fmt.Fprintf(e.stderr, "%d records are in %s; start the scheduler with that --store\n", n, daemon.ShownStore(o.Store))
			}
			return nil
		},
	}
	f := cmd.Flags()
	storeFlag(f, &o.Store, "where records are kept, as for the scheduler")
	f.StringVar(&o.Data, "data", place(e, "/var/lib/drover/scheduler", "scheduler"), "data `folder`")
	f.Uint64Var(&o.Term, "term", 0, "term of the next life of the scheduler; 0: the one after the backup's")
	return cmd
}
