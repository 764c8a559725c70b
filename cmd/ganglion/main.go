// Command ganglion is the MQTT gateway for NervesHub, with a NervesHub stand-in
// and simulated microcontrollers to try it on. Each subcommand has a file.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2 // wrong use or configuration
)

// A usageError is the user's, and told without a stack of wrapping.
type usageError struct{ error }

func main() { os.Exit(execute(os.Args[1:])) }

func execute(args []string) int {
	root := &cobra.Command{
		Use:           "ganglion",
		Short:         "The MQTT gateway for NervesHub",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.Help()
			return usageError{errors.New("name a command; ganglion help lists them")}
		},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no command %q; try ganglion help", args[0])}
			}
			return nil
		},
	}
	root.AddCommand(runCommand(), checkCommand(), demoCommand(), hubCommand(), deviceCommand(), imageCommand(), versionCommand())
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; try %s --help", err, cmd.CommandPath())}
	})
	for _, c := range root.Commands() {
		if positional := c.Args; positional != nil {
			c.Args = func(cmd *cobra.Command, args []string) error {
				if err := positional(cmd, args); err != nil {
					return usageError{fmt.Errorf("%w; try %s --help", err, cmd.CommandPath())}
				}
				return nil
			}
		}
	}
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "ganglion:", err)
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailed
}
