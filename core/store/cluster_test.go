package store_test

import (
	"strings"
	"testing"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/store"
	"github.com/droverhq/drover/core/store/memory"
)

// A store belongs to the cluster that used it first. Its CA may be replaced by
// another one as long as both were in use at one time.
func TestAStoreBelongsToOneCluster(t *testing.T) {
	t.Parallel()
	s := memory.New()
	claim := func(name string, cas ...string) error {
		return store.Claim(t.Context(), s, store.Cluster{Name: name, CAs: cas})
	}
	for _, cas := range [][]string{{"a"}, {"a"}, {"a", "b"}, {"b"}} {
		if err := claim("one", cas...); err != nil {
			t.Fatal(cas, err)
		}
	}
	for name, cas := range map[string][]string{"two": {"c"}, "one": {"a"}} {
		err := claim(name, cas...)
		if errs.ReasonOf(err) != "STORE_OF_ANOTHER_CLUSTER" || !strings.Contains(err.Error(), `"one"`) {
			t.Errorf("%s, %v: %v", name, cas, err)
		}
	}
	if err := claim("one", "b"); err != nil {
		t.Error(err)
	}
	var b store.Batch
	b.Put(store.ClusterKey(), []byte("{"))
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	if err := claim("one", "b"); errs.ReasonOf(err) != "STORE_DAMAGED" || !strings.Contains(err.Error(), "m/cluster") {
		t.Error(err)
	}
}
