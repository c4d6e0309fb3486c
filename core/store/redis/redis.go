// Package redis is the store for those who outgrow one machine: records in a
// Redis server of their own, which several schedulers can reach one after the
// other. Each batch is one Lua script. Redis keeps what it acknowledged only
// with appendonly yes, appendfsync always and without eviction; Open looks.
package redis

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
)

const (
	opOpen  = "open the store"
	opRead  = "read the store"
	opWrite = "write the store"
)

const (
	defaultTimeout  = 5 * time.Second
	defaultPatience = 30 * time.Second
	defaultPool     = 16
	// maxArguments is below the most that Redis takes in one command, 1024*1024.
	maxArguments = 1_000_000
)

// Store implements store.Store.
type Store struct {
	config   Config
	client   *goredis.Client
	scripts  scripts
	keys     []string // of every script: see common.lua
	warnings []string
	trouble  trouble // it does not answer
	full     trouble // it refuses writes
	room     room
	nonce    string // tells this writer from others
	// watermark is how new the store was when it was seen last.
	watermark *watermark
	// unsure is the holder of a lease that was asked for without an answer.
	unsure atomic.Pointer[string]
	scans  atomic.Uint64

	closing sync.Once
	done    chan struct{} // closed by Close

	turn  chan struct{} // holds one token: batches go one after the other; guards what follows
	batch uint64        // number of the last batch
	told  uint64        // number of the last one that Redis confirmed
}

// Open connects and checks that the server can be a store. What is wrong with
// its settings, but lets it work, is in Warnings.
func Open(ctx context.Context, c Config) (*Store, error) {
	c.Prefix = cmp.Or(c.Prefix, defaultPrefix)
	c.Timeout, c.Patience = cmp.Or(c.Timeout, defaultTimeout), cmp.Or(c.Patience, defaultPatience)
	c.Pool = cmp.Or(c.Pool, defaultPool)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	logging.Disable() // the library speaks to stderr by itself; what goes wrong is told below
	s := &Store{
		config: c, scripts: newScripts(), nonce: rand.Text(),
		done: make(chan struct{}), turn: make(chan struct{}, 1),
	}
	s.trouble = trouble{log: c.Log, begins: "the store cannot be reached, trying again", end: "the store is back"}
	s.full = trouble{log: c.Log, begins: "the store takes no writes; nothing is recorded or answered until it does", end: "the store takes writes again"}
	for _, name := range []string{"keys", "values", "writers", "snapshots", "lease", "water"} {
		// The braces put all keys of a cluster into one slot.
		s.keys = append(s.keys, "{"+c.Prefix+"}:"+name)
	}
	s.watermark = &watermark{file: c.Seen, store: fmt.Sprintf("%d/%s", c.DB, c.Prefix), log: c.Log}
	s.watermark.load()
	s.client = goredis.NewClient(s.options())
	s.turn <- struct{}{}
	if err := s.inspect(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) options() *goredis.Options {
	c := &s.config
	return &goredis.Options{
		Network: c.Network, Addr: c.Address, TLSConfig: c.TLS, DB: c.DB, ClientName: "drover",
		CredentialsProviderContext: func(context.Context) (string, string, error) {
			password, err := c.password()
			return c.User, password, err
		},
		MaxRetries: -1, DialerRetries: 1, // Store.try does it, and knows when it is safe
		DialTimeout: c.Timeout, ReadTimeout: c.Timeout, WriteTimeout: c.Timeout, PoolTimeout: c.Timeout,
		ContextTimeoutEnabled: true,
		PoolSize:              c.Pool, MaxActiveConns: c.Pool, PipelinePoolSize: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// Warnings say what an operator must know about the server's settings.
func (s *Store) Warnings() []string { return s.warnings }

// run runs a script, again and again while Redis cannot be reached. args is
// asked for each try.
func (s *Store) run(ctx context.Context, op string, script *goredis.Script, args func() []any) (any, error) {
	var out any
	err := s.try(ctx, op, func(ctx context.Context) (err error) {
		out, err = script.Run(ctx, s.client, s.keys, args()...).Result()
		return err
	})
	return out, err
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key []byte) ([]byte, error) {
	var value []byte
	err := s.try(ctx, opRead, func(ctx context.Context) (err error) {
		value, err = s.client.HGet(ctx, s.keys[1], string(key)).Bytes()
		return err
	})
	if errors.Is(err, goredis.Nil) {
		return nil, store.ErrNotFound
	}
	return value, err
}

// Apply implements store.Store. Batches have numbers, so that one whose answer
// got lost can be sent again and is made once, and one that is late is refused.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	if n := 6 + 2*len(b.Guards) + 3*len(b.Ops); n > maxArguments {
		return errs.E(opWrite, errs.Invalid, "BATCH_TOO_LARGE", fmt.Errorf("a batch of %d changes", len(b.Ops)))
	}
	select {
	case <-s.turn:
	case <-s.done:
		return store.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { s.turn <- struct{}{} }()
	s.batch++
	args := s.encode(b)
	out, err := s.run(ctx, opWrite, s.scripts.apply, func() []any { return args })
	if err != nil {
		return err
	}
	word, _, err := s.answer(opWrite, out)
	switch {
	case err != nil:
		return err
	case word == "OK":
		s.told = s.batch
		return nil
	case word == "FENCED":
		return store.ErrFenced
	default:
		return fmt.Errorf("%s: batch %d: Redis answered %v", opWrite, s.batch, out)
	}
}

func (s *Store) encode(b *store.Batch) []any {
	args := make([]any, 0, 6+2*len(b.Guards)+3*len(b.Ops))
	epoch, writes := s.watermark.args()
	args = append(args, s.nonce, s.batch, s.told, epoch, writes, len(b.Guards))
	for _, g := range b.Guards {
		args = append(args, g.Key, given(g.Value))
	}
	for _, op := range b.Ops {
		switch {
		case op.To != nil:
			args = append(args, "range", lower(op.Key), upper(op.To))
		case op.Delete:
			args = append(args, "delete", op.Key, "")
		default:
			args = append(args, "put", op.Key, op.Value)
		}
	}
	return args
}

// given is what mark of common.lua makes of a value.
func given(value []byte) string {
	if value == nil {
		return "-"
	}
	return "+" + string(value)
}

// lower and upper are bounds as ZRANGEBYLEX wants them.
func lower(key []byte) string { return "[" + string(key) }

func upper(key []byte) string { return "(" + string(key) }

// usable tells whether a call may begin.
func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.done:
		return store.ErrClosed
	default:
		return nil
	}
}

// Close implements store.Store. Calls that wait for Redis end with ErrClosed. A
// second Close does nothing.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		close(s.done)
		s.watermark.close()
		ctx, cancel := context.WithTimeout(context.Background(), s.config.Timeout)
		defer cancel()
		select {
		case <-s.turn: // after the last batch; none comes any more
			if s.batch > 0 {
				// Nobody asks for its number again. It costs a few bytes if it stays.
				_ = s.client.HDel(ctx, s.keys[2], s.nonce).Err()
			}
		case <-ctx.Done():
		}
		if err = s.client.Close(); err != nil {
			err = fmt.Errorf("close the store: %w", err)
		}
	})
	return err
}

// inspect reads the version and the settings that decide what an acknowledged
// batch is worth.
func (s *Store) inspect(ctx context.Context) error {
	var info string
	if err := s.try(ctx, opOpen, func(ctx context.Context) (err error) {
		info, err = s.client.Info(ctx, "server").Result()
		return err
	}); err != nil {
		return err
	}
	if v := field(info, "redis_version:"); v != "" {
		if major, err := strconv.Atoi(strings.Split(v, ".")[0]); err != nil || major < 7 {
			return errs.E(opOpen, errs.Precondition, "STORE_VERSION", fmt.Errorf("its version %s is too old", v)).WithHint("use Redis 7 or later")
		}
	}
	var settings map[string]string
	err := s.try(ctx, opOpen, func(ctx context.Context) error {
		cmd := goredis.NewMapStringStringCmd(ctx, "config", "get",
			"appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")
		_ = s.client.Process(ctx, cmd) // the same error as the command's
		var err error
		settings, err = cmd.Result()
		return err
	})
	if err != nil && errs.ReasonOf(err) != reasonDenied {
		return err
	}
	s.warnings = judge(settings)
	return nil
}

func field(text, name string) string {
	_, rest, _ := strings.Cut(text, name)
	v, _, _ := strings.Cut(rest, "\r\n")
	return v
}

// judge turns settings into warnings. Services that one rents often tell none.
func judge(settings map[string]string) []string {
	for _, name := range []string{"appendonly", "appendfsync", "maxmemory-policy"} {
		if settings[name] == "" {
			return []string{"its settings cannot be read: make sure of appendonly yes, appendfsync always, maxmemory-policy noeviction"}
		}
	}
	var out []string
	switch {
	case settings["appendonly"] != "yes":
		out = append(out, "appendonly is "+settings["appendonly"]+": when Redis ends, acknowledged jobs are lost; set appendonly yes and appendfsync always")
	case settings["appendfsync"] != "always":
		out = append(out, "appendfsync is "+settings["appendfsync"]+": when its machine fails, the last acknowledged jobs are lost; set appendfsync always")
	case settings["no-appendfsync-on-rewrite"] == "yes":
		out = append(out, "no-appendfsync-on-rewrite is yes: when its machine fails during a rewrite, acknowledged jobs are lost; set it to no")
	}
	if p := settings["maxmemory-policy"]; p != "noeviction" {
		out = append(out, "maxmemory-policy is "+p+": when memory is short, Redis throws records away; set maxmemory-policy noeviction")
	}
	return out
}
