package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/droverhq/drover/cmd/drover/internal/peers"
)

// peerAuto stands for the peers that are installed.
const peerAuto = "auto"

// choosePeers makes names of --peer and looks whether their programs are there.
func (b *benchFlags) choosePeers() error {
	if slices.Contains(b.peers, peerAuto) {
		b.peers = peers.Installed()
	}
	for _, name := range b.peers {
		if err := peers.Check(name); err != nil {
			return err
		}
	}
	return nil
}

// startPeers starts what was chosen, each with a folder of its own.
func (b *benchFlags) startPeers(ctx context.Context, dir string) ([]peers.Peer, error) {
	var out []peers.Peer
	for _, name := range b.peers {
		p, err := startPeer(ctx, name, dir)
		if err != nil {
			return nil, errors.Join(err, closePeers(out))
		}
		out = append(out, p)
	}
	return out, nil
}

func startPeer(ctx context.Context, name, dir string) (peers.Peer, error) {
	own := filepath.Join(dir, name)
	if err := os.Mkdir(own, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for %s: %w", name, err)
	}
	return peers.Start(ctx, name, own)
}

func closePeers(all []peers.Peer) error {
	var err error
	for _, p := range all {
		err = errors.Join(err, p.Close())
	}
	return err
}

// besideSSH measures on a cluster and, when it was asked for, beside the one peer
// that has something to say to a stream or a single command; ssh is nil otherwise.
func (b *benchFlags) besideSSH(ctx context.Context, e *env, run func(t *testbed, ssh *peers.SSH) error) error {
	return b.onCluster(ctx, func(t *testbed) (err error) {
		if !slices.Contains(b.peers, "ssh") {
			fmt.Fprintln(e.stderr, "Without --peer ssh, nothing is compared with ssh.")
			return run(t, nil)
		}
		p, err := startPeer(ctx, "ssh", t.dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Close()) }()
		return run(t, p.(*peers.SSH))
	})
}
