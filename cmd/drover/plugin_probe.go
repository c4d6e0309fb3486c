package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/droverhq/drover/cmd/drover/internal/problem"
	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/pluginhost"
)

// Bounds of a test.
const (
	testTimeout = 30 * time.Second
	maxPlugin   = 1 << 30
)

func newPluginTest(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "test FILE", Short: "Try whether a worker could use a plugin", Args: exactly("FILE"),
		Long: "Try whether a worker could use a plugin: it is asked to describe itself, installed into a\n" +
			"folder of its own, started, spoken to and shut down. Nothing of it stays.",
		RunE: func(cmd *cobra.Command, args []string) error { return e.testPlugin(cmd.Context(), args[0]) },
	}
}

// testPlugin says after each step what was found.
func (e *env) testPlugin(ctx context.Context, file string) error {
	d, err := pluginhost.Probe(ctx, file)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "ok   describes itself: %s %s, protocol %d, commands %s\n", d.Name, d.Version, d.Protocol, strings.Join(d.Commands, " "))
	tmp, err := os.MkdirTemp("", "drover-plugin-test-*")
	if err != nil {
		return fmt.Errorf("make a folder for the test: %w", err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // a folder for temporary files
	dir := filepath.Join(tmp, "plugins")
	if _, err := pluginhost.Install(dir, file, ""); err != nil {
		return err
	}
	if _, err := pluginhost.Verify(dir, d.Name); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, "ok   installs and verifies")
	if err := startPlugin(ctx, dir, filepath.Join(tmp, "state")); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, "ok   starts, runs its canary and shuts down")
	return nil
}

// startPlugin runs the one plugin of a folder until it is ready.
func startPlugin(ctx context.Context, dir, state string) error {
	const op = "test plugin"
	host, err := pluginhost.New(pluginhost.Config{
		Dir: dir, State: state, Log: slog.New(slog.DiscardHandler), Events: func([]pluginhost.Event) {},
	})
	if err != nil {
		return err
	}
	defer host.Close()
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	var wg sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	failed := make(chan error, 1)
	wg.Go(func() { failed <- host.Run(running) })
	defer wg.Wait()
	defer stop()
	if err := awaitReady(ctx, host, failed); err != nil {
		return errors.Join(err, host.Shutdown(ctx))
	}
	if err := host.Shutdown(ctx); err != nil {
		return errs.E(op, errs.Precondition, "PLUGIN_STUCK", fmt.Errorf("it does not shut down: %w", err))
	}
	return nil
}

func awaitReady(ctx context.Context, host *pluginhost.Host, failed <-chan error) error {
	const op = "test plugin"
	for {
		for _, r := range host.Runners() {
			switch r.State {
			case "ready":
				return nil
			case "refused", "unhealthy":
				return errs.E(op, errs.Precondition, "PLUGIN_BROKEN", errors.New(r.Message))
			}
		}
		select {
		case <-host.Changed():
		case err := <-failed:
			return err
		case <-ctx.Done():
			return errs.E(op, errs.Precondition, "PLUGIN_BROKEN", fmt.Errorf("it is not ready after %v", testTimeout))
		}
	}
}

// downloaded is a file in a folder of its own.
type downloaded struct{ dir, path string }

func (d downloaded) remove() { _ = os.RemoveAll(d.dir) }

// download fetches a plugin. Only its checksum tells that it is the right one.
func download(ctx context.Context, url, sum string) (downloaded, error) {
	const op = "download the plugin"
	if sum == "" {
		return downloaded{}, problem.UsageError("plugin install", "a URL needs --sha256")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return downloaded{}, errs.E(op, errs.Invalid, "URL", err)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return downloaded{}, errs.E(op, errs.Unavailable, "URL", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return downloaded{}, errs.E(op, errs.NotFound, "URL", fmt.Errorf("%s: %s", url, answer.Status))
	}
	dir, err := os.MkdirTemp("", "drover-plugin-*")
	if err != nil {
		return downloaded{}, fmt.Errorf("make a folder for the download: %w", err)
	}
	d := downloaded{dir, filepath.Join(dir, "plugin")}
	f, err := os.OpenFile(d.path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		d.remove()
		return d, fmt.Errorf("store the download: %w", err)
	}
	_, err = io.Copy(f, io.LimitReader(answer.Body, maxPlugin))
	if err := errors.Join(err, f.Close()); err != nil {
		d.remove()
		return d, errs.E(op, errs.Unavailable, "URL", err)
	}
	return d, nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
