package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// demoDeadline is how long the story may take; it takes about ten seconds.
const demoDeadline = time.Minute

func demoCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show an update from NervesHub to a microcontroller, all on this machine",
		Long: "Starts a NervesHub stand-in, the gateway with its embedded broker and a simulated microcontroller,\n" +
			"releases a new firmware and tells what happens, and where it was seen. Needs nothing and leaves nothing behind.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return demo(ctx, cmd.OutOrStdout(), once)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "end when NervesHub has recorded the new version as validated: 0, or 1 with the reason")
	return cmd
}

// demo tells the story and, unless it is to be told once, stays for those who
// want to look around.
func demo(ctx context.Context, out io.Writer, once bool) (err error) {
	dir, err := os.MkdirTemp("", "ganglion-demo-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := newStage(dir, newTeller(out))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ended := s.run(ctx, cancel)
	defer func() {
		cancel(nil)
		err = errors.Join(err, ended())
	}()
	if err := s.story(ctx); err != nil {
		cause := context.Cause(ctx)
		switch {
		case cause == nil:
			return err
		case !errors.Is(cause, context.Canceled):
			return cause // a part has failed
		case once:
			return fmt.Errorf("interrupted: %w", err)
		}
		return nil
	}
	if once {
		return nil
	}
	s.tell.say("", "All of it keeps running until Ctrl-C. Another device:  mosquitto_sub -h 127.0.0.1 -p %s -i %s -t 'nh/%s/down/#' -v", s.mqttPort(), secondID, secondID)
	s.tell.say("", "NervesHub's side of it:  curl -X POST http://%s/devices/%s/reboot", s.api.Addr(), demoID)
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// story waits for what has to happen, and says what did not.
func (s *stage) story(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoDeadline)
	defer cancel()
	begun := time.Now()
	for _, step := range s.steps() {
		if err := s.hub.Wait(ctx, demoID, step.seen); err != nil {
			state, _ := s.hub.Device(demoID)
			return fmt.Errorf("NervesHub did not see %s: it has %s", step.what, summary(state))
		}
		if step.then != nil {
			if err := step.then(); err != nil {
				return err
			}
		}
	}
	state, _ := s.hub.Device(demoID)
	if len(state.Crashes) > 0 || state.FalseSuccesses > 0 || state.PhantomRows > 0 {
		return fmt.Errorf("the update succeeded, but not cleanly: %s", summary(state))
	}
	s.tell.say("NervesHub", "%s runs %s, validated; %d update recorded as successful, no channel crashed", demoID, state.Metadata.Version, state.Successes)
	s.tell.say("", "The whole story took %.1f s.", time.Since(begun).Seconds())
	return nil
}
