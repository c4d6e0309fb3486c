package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/droverhq/drover/core/errs"
)

// ClusterKey is where a shared store keeps which cluster it belongs to.
func ClusterKey() []byte { return []byte("m/cluster") }

// Cluster tells clusters apart: CAs are the sums of the certificates of those that
// sign its certificates. While one replaces another, both do.
type Cluster struct {
	Name string   `json:"name"`
	CAs  []string `json:"cas"`
}

// CheckCluster makes sure that a store belongs to a cluster, or to none yet. One of
// another cluster is Precondition, reason STORE_OF_ANOTHER_CLUSTER.
func CheckCluster(ctx context.Context, s Store, c Cluster) error {
	const op = "use the store"
	v, err := s.Get(ctx, ClusterKey())
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read which cluster the store belongs to: %w", err)
	}
	var of Cluster
	if err := json.Unmarshal(v, &of); err != nil {
		return errs.E(op, errs.Precondition, "STORE_DAMAGED", fmt.Errorf("the record %s is damaged: %w", ClusterKey(), err)).
			WithHint("restore a backup")
	}
	if slices.ContainsFunc(of.CAs, func(ca string) bool { return slices.Contains(c.CAs, ca) }) {
		return nil
	}
	return errs.E(op, errs.Precondition, "STORE_OF_ANOTHER_CLUSTER",
		fmt.Errorf("it holds the records of the cluster %q, whose CA is none of this one's", of.Name)).
		WithHint("give each cluster a prefix or a database of its own; when this cluster has a new CA: drover store accept --new-ca URL")
}

// Claim writes which cluster a store belongs to, unless it says so or belongs to
// another one.
func Claim(ctx context.Context, s Store, c Cluster) error {
	if err := CheckCluster(ctx, s, c); err != nil {
		return err
	}
	want, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("claim the store: %w", err)
	}
	if v, err := s.Get(ctx, ClusterKey()); err == nil && bytes.Equal(v, want) {
		return nil
	}
	var b Batch
	b.Put(ClusterKey(), want)
	if err := s.Apply(ctx, &b); err != nil {
		return fmt.Errorf("claim the store: %w", err)
	}
	return nil
}
