package memory_test

import (
	"testing"

	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
	"github.com/droverhq/drover/core/store/storetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, storetest.Engine{
		Open:    func(*testing.T, string) store.Store { return memory.New() },
		Forgets: true,
	})
}
