package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/droverhq/drover/cmd/drover/internal/client"
	"github.com/droverhq/drover/cmd/drover/internal/term"
	"github.com/droverhq/drover/core/errs"
)

// env is the surroundings of one run of drover: all that a verb takes from or
// gives to the outside. Tests make their own.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	// notify relays signals until the returned function is called.
	notify func(...os.Signal) (<-chan os.Signal, func())
	// patience is how long a verb that waits for a job tries to reach a
	// scheduler that was there before.
	patience time.Duration

	target  client.Flags // global flags
	noColor bool
}

// osEnv is the surroundings of the process.
func osEnv() *env {
	return &env{
		stdin: os.Stdin, stdout: term.Guard(os.Stdout), stderr: term.Guard(os.Stderr), getenv: os.Getenv, now: time.Now,
		notify: notify, patience: 10 * time.Minute,
	}
}

func notify(signals ...os.Signal) (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 8)
	var wanted []os.Signal
	for _, s := range signals {
		if !signal.Ignored(s) { // nohup drover run ...
			wanted = append(wanted, s)
		}
	}
	if len(wanted) > 0 {
		signal.Notify(c, wanted...)
	}
	return c, func() { signal.Stop(c) }
}

// connect finds the scheduler and prepares the connection to it.
func (e *env) connect() (*client.Client, error) {
	t, err := client.Resolve(e.target, e.getenv)
	if err != nil {
		return nil, err
	}
	return client.Dial(t, version)
}

// withClient connects, lets f use the connection and closes it.
func (e *env) withClient(f func(*client.Client) error) error {
	c, err := e.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// call bounds a call that answers at once.
func call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, client.CallTimeout)
}

// palette colours what goes to a stream.
func (e *env) palette(stream io.Writer) term.Palette {
	return term.NewPalette(stream, e.getenv, e.noColor)
}

// file opens an argument that names a file, or standard input as "-".
func (e *env) file(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(e.stdin), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, errs.E("read input", errs.Invalid, "FILE", err)
	}
	return f, nil
}
