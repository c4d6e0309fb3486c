//go:build !man

package main

import "github.com/spf13/cobra"

// addMan adds nothing: the product does not write its own manual pages.
func addMan(*cobra.Command) {}
