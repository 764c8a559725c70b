package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"ganglion/internal/gateway"
)

func runCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Run the gateway",
		Long: "Runs the gateway until SIGTERM or SIGINT. Prints one line, ready, when every listener is open.\n" +
			"SIGHUP checks the configuration file again, and disconnects nobody.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := load(file)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			log := config.Log.Logger(os.Stderr)
			slog.SetDefault(log)
			defer onHangup(func() { recheck(file, log) })()
			defer context.AfterFunc(ctx, func() { daemon.SdNotify(false, daemon.SdNotifyStopping) })()
			g, err := gateway.New(config, gateway.Options{
				Version: version(), Log: log,
				Ready: func(a gateway.Addrs) {
					sayReady(os.Stderr, config.Log, a)
					daemon.SdNotify(false, daemon.SdNotifyReady) // no systemd is fine
				},
			})
			if err != nil {
				return err
			}
			return g.Run(ctx)
		},
	}
	configFlag(cmd, &file)
	return cmd
}

// onHangup calls do at every SIGHUP until stop, which waits for a call under
// way. Hangups during a call are one.
func onHangup(do func()) (stop func()) {
	hangups, ended := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for range hangups {
			do()
		}
	}()
	return func() {
		signal.Stop(hangups) // nothing is sent any more when it returns
		close(hangups)
		<-ended
	}
}

// recheck says what a running gateway makes of its configuration file now.
func recheck(file string, log *slog.Logger) {
	_, err := load(file)
	if err == nil {
		log.Info("SIGHUP: the configuration is good; certificates in identity.directory are read at every connect anyway, other changes need a restart",
			"config", file)
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		log.Error("SIGHUP: the configuration is bad, and a restart would fail; the gateway goes on with what it has", "err", line)
	}
}

// sayReady prints the line that those wait for who start the gateway, where the
// log is too quiet to have it.
func sayReady(w io.Writer, l gateway.Log, a gateway.Addrs) {
	switch {
	case l.Level == "debug" || l.Level == "info":
	case l.Format == "json":
		l.Level = "info"
		l.Logger(w).Info("ready", "mqtt", a.MQTT, "web", a.Web)
	default:
		fmt.Fprintf(w, "ready mqtt=%s web=%s\n", a.MQTT, a.Web)
	}
}

func checkCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Say everything that is wrong with a configuration file",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := load(file); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), file+": ok")
			return nil
		},
	}
	configFlag(cmd, &file)
	return cmd
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "the configuration `file`; config.example.yaml explains every key")
}

// load reads the configuration; what is wrong with it is the user's to mend.
func load(file string) (gateway.Config, error) {
	if file == "" {
		return gateway.Config{}, usageError{errors.New("--config is missing; name a file, as in config.example.yaml")}
	}
	config, err := gateway.Load(file)
	if err != nil {
		return gateway.Config{}, usageError{err}
	}
	return config, nil
}
