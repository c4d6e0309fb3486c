//go:build man

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// addMan adds the command that writes the manual pages. Only the build that
// "make man" makes has it: the product carries no formatter.
func addMan(root *cobra.Command) {
	root.AddCommand(&cobra.Command{
		Use: "man DIR", Short: "Write the manual pages into a folder", Args: exactly("DIR"), Hidden: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("make the folder of the manual pages: %w", err)
			}
			root.DisableAutoGenTag = true // the same pages from the same code
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "drover " + version, Manual: "drover"}, args[0]); err != nil {
				return fmt.Errorf("write the manual pages: %w", err)
			}
			return nil
		},
	})
}
