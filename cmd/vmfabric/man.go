package main

import (
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes what packages have besides the programs. It is not for
// operators, so help does not list it.
func manCommand() *cobra.Command {
	var date string
	cmd := &cobra.Command{
		Use:     "man DIR",
		Short:   "Write manual pages and completions of shells into a directory, for packages",
		Example: "  vmfabric man ./share",
		Hidden:  true,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			when, err := time.Parse(time.DateOnly, date)
			if err != nil {
				return usageError{err}
			}
			return writePages(cmd.Root(), args[0], when)
		},
	}
	cmd.Flags().StringVar(&date, "date", "2026-01-01", "the date of the pages, YYYY-MM-DD")
	return cmd
}

// table is a line of a table of a command's text, as help prints it.
var table = regexp.MustCompile(`(?m)^ {2,}\S`)

// preformat indents the tables of all texts, so that Markdown leaves their lines as
// they are.
func preformat(cmd *cobra.Command) {
	cmd.Long = table.ReplaceAllStringFunc(cmd.Long, func(line string) string { return "  " + line })
	for _, c := range cmd.Commands() {
		preformat(c)
	}
}

// writePages writes the tree that is below /usr/share.
func writePages(root *cobra.Command, dir string, when time.Time) error {
	man := filepath.Join(dir, "man/man8")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	for _, c := range root.Commands() {
		c.Hidden = c.Hidden || c.Name() == "completion" // packages have the completions
	}
	preformat(root)
	header := &doc.GenManHeader{Section: "8", Source: "vmfabric " + version, Manual: "vmfabric", Date: &when}
	if err := doc.GenManTree(root, header, man); err != nil {
		return err
	}
	for _, shell := range []struct {
		path  string
		write func(string) error
	}{
		{"bash-completion/completions/vmfabric", func(path string) error { return root.GenBashCompletionFileV2(path, true) }},
		{"zsh/vendor-completions/_vmfabric", root.GenZshCompletionFile},
		{"fish/vendor_completions.d/vmfabric.fish", func(path string) error { return root.GenFishCompletionFile(path, true) }},
	} {
		path := filepath.Join(dir, shell.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := shell.write(path); err != nil {
			return err
		}
	}
	return nil
}
