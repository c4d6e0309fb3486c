package redis_test

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"testing"

	"go.uber.org/goleak"

	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/redis"
	"github.com/droverhq/drover/core/store/redis/redistest"
	"github.com/droverhq/drover/core/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func nothing(string) string { return "" }

func open(t *testing.T, url string) *redis.Store {
	t.Helper()
	c, err := redis.ParseURL(url, nothing)
	if err != nil {
		t.Fatal(err)
	}
	return openConfig(t, c)
}

func openConfig(t *testing.T, c redis.Config) *redis.Store {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := redis.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	storetest.Run(t, storetest.Engine{Open: func(t *testing.T, dir string) store.Store {
		sum := sha256.Sum256([]byte(dir))
		return open(t, server.URL("prefix="+hex.EncodeToString(sum[:8])))
	}})
}
