package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ganglion/internal/device"
	"ganglion/internal/hubtest"
	"ganglion/internal/hubtest/auth"
)

// hubFlags are what `ganglion hub` is told.
type hubFlags struct {
	listen, web, api string
	webURL           string
	hosts            []string

	dir           string
	issue         []string
	jitp          bool
	secrets       []string
	tls13         bool
	extensions    []string
	handshakes    int
	scheduleEvery time.Duration

	release  string
	firmware hubtest.Firmware
	image    string
	size     int
	quiet    bool
}

func hubCommand() *cobra.Command {
	var f hubFlags
	cmd := &cobra.Command{
		Use:   "hub",
		Short: "Run a NervesHub stand-in",
		Long: "Runs a NervesHub stand-in: one product, one deployment group, devices by certificate or shared secret. It is\n" +
			"driven over HTTP (docs/hub.md) and keeps its records in memory. Prints one line `ready …` with its addresses,\n" +
			"then one line per thing that happens.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return runHub(ctx, cmd.OutOrStdout(), f)
		},
	}
	fs, fw := cmd.Flags(), device.DefaultFirmware
	fs.StringVar(&f.listen, "listen", "127.0.0.1:8443", "device endpoint, TLS, `HOST:PORT`")
	fs.StringVar(&f.web, "web", "127.0.0.1:8444", "web endpoint, plain HTTP: downloads, shared-secret devices, `HOST:PORT`")
	fs.StringVar(&f.api, "api", "127.0.0.1:8445", "control API, plain HTTP without authentication, `HOST:PORT`")
	fs.StringVar(&f.webURL, "web-url", "", "base `URL` in firmware_url (default: the web endpoint's address)")
	fs.StringArrayVar(&f.hosts, "host", nil, "further `name` or address in the device endpoint's certificate; may be repeated")
	fs.StringVar(&f.dir, "dir", "", "keep keys and certificates in this `directory`, new ones where there are none")
	fs.StringArrayVar(&f.issue, "issue", nil, "register this device `identifier` and issue its certificate into DIR/devices; may be repeated")
	fs.BoolVar(&f.jitp, "jitp", false, "create devices that come with an unknown certificate of the device CA")
	fs.StringArrayVar(&f.secrets, "secret", nil, "product shared secret, `KEY=SECRET` with a KEY nhp_…; may be repeated")
	fs.BoolVar(&f.tls13, "tls13", false, "allow TLS 1.3 and list no acceptable CAs")
	fs.StringSliceVar(&f.extensions, "extensions", nil, "extensions the product has on, like `health,logging`")
	fs.IntVar(&f.handshakes, "handshakes", 100, "connections per second before load is shed; -1: no limit")
	fs.DurationVar(&f.scheduleEvery, "schedule-every", 3*time.Second, "least time between two looks of the orchestrator")
	fs.StringVar(&f.release, "release", "", "release a firmware of this `version` at once")
	fs.StringVar(&f.image, "image", "", "`file` with the image of --release (default: --size random bytes)")
	fs.IntVar(&f.size, "size", 64<<10, "`bytes` of a random image")
	fs.StringVar(&f.firmware.UUID, "uuid", "", "uuid of --release (default: derived from the image)")
	fs.StringVar(&f.firmware.Product, "product", fw.Product, "product of --release")
	fs.StringVar(&f.firmware.Platform, "platform", fw.Platform, "platform of --release")
	fs.StringVar(&f.firmware.Architecture, "architecture", fw.Architecture, "architecture of --release")
	fs.BoolVar(&f.quiet, "quiet", false, "print nothing after the ready line")
	return cmd
}

// runHub runs a hub until the context ends; that is no error.
func runHub(ctx context.Context, out io.Writer, f hubFlags) error {
	config, err := f.config()
	if err != nil {
		return err
	}
	if !f.quiet {
		config.Log = hubLog(out)
	}
	hub := hubtest.New(config)
	for _, id := range f.issue {
		hub.AddDevice(id)
	}
	if err := f.releaseOn(hub); err != nil {
		return err
	}
	listeners, err := listenAll(f.listen, f.web, f.api)
	if err != nil {
		return err
	}
	api := &http.Server{Handler: hub.API(), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 3) // one per server
	var servers sync.WaitGroup
	servers.Go(func() { ended <- hub.Serve(listeners[0]) })
	servers.Go(func() { ended <- hub.ServeWeb(listeners[1]) })
	servers.Go(func() { ended <- api.Serve(listeners[2]) })
	fmt.Fprintf(out, "ready devices=wss://%s/device-socket/websocket web=http://%s api=http://%s dir=%s\n",
		listeners[0].Addr(), listeners[1].Addr(), listeners[2].Addr(), f.dir)

	select {
	case err = <-ended:
		err = fmt.Errorf("hub: serving: %w", cmp.Or(err, http.ErrServerClosed))
	case <-ctx.Done():
	}
	api.Close()
	hub.Close()
	servers.Wait()
	return err
}

// config turns the flags into the hub's, reading or making the keys.
func (f *hubFlags) config() (hubtest.Config, error) {
	if len(f.issue) > 0 && f.dir == "" {
		return hubtest.Config{}, usageError{errors.New("hub: issue: needs --dir, where the certificates go")}
	}
	registry := auth.New()
	if f.tls13 {
		registry.EnableTLS13()
	}
	for _, s := range f.secrets {
		key, secret, ok := strings.Cut(s, "=")
		if !ok || !strings.HasPrefix(key, "nhp_") || secret == "" {
			// What was given stays out of the message: part of it may be the secret.
			return hubtest.Config{}, usageError{errors.New("hub: secret: the value must be nhp_…=SECRET")}
		}
		registry.AddSecret(key, secret, "")
	}
	hosts := append([]string{"localhost", "127.0.0.1", "::1"}, f.hosts...)
	if host, _, err := net.SplitHostPort(f.listen); err == nil && host != "" && !slices.Contains(hosts, host) {
		hosts = append(hosts, host)
	}
	keys := hubKeys{dir: f.dir}
	server, ca, err := keys.load(hosts)
	if err != nil {
		return hubtest.Config{}, err
	}
	if err := registry.AddCA(ca.Certificate, f.jitp); err != nil {
		return hubtest.Config{}, fmt.Errorf("hub: %w", err)
	}
	for _, id := range f.issue {
		if err := keys.issue(ca, id); err != nil {
			return hubtest.Config{}, err
		}
	}
	return hubtest.Config{
		Auth: registry, Certificate: server, WebURL: strings.TrimSuffix(f.webURL, "/"), Extensions: f.extensions,
		HandshakesPerSecond: f.handshakes, ScheduleEvery: f.scheduleEvery,
	}, nil
}

// releaseOn uploads and releases the firmware of --release, if there is one.
func (f *hubFlags) releaseOn(hub *hubtest.Hub) error {
	if f.release == "" {
		return nil
	}
	fw := f.firmware
	fw.Version = f.release
	if f.image != "" {
		var err error
		if fw.Image, err = os.ReadFile(f.image); err != nil {
			return usageError{fmt.Errorf("hub: image: %w", err)}
		}
	} else {
		fw.Image = make([]byte, max(0, f.size))
		rand.Read(fw.Image) // never fails
	}
	fw.UUID = cmp.Or(fw.UUID, hubtest.NewUUID(fw))
	hub.AddFirmware(fw)
	return hub.SetRelease(fw.UUID)
}

// listenAll opens all addresses or none.
func listenAll(addresses ...string) ([]net.Listener, error) {
	var all []net.Listener
	for _, a := range addresses {
		l, err := net.Listen("tcp", a)
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			return nil, fmt.Errorf("hub: listen: %w", err)
		}
		all = append(all, l)
	}
	return all, nil
}

func hubLog(out io.Writer) func(hubtest.Entry) {
	var mu sync.Mutex // serializes lines
	return func(e hubtest.Entry) {
		line := fmt.Sprintf("%s %s %s\n", e.Time.Format("15:04:05.000"), cmp.Or(e.Device, "-"), e.Text)
		mu.Lock()
		defer mu.Unlock()
		io.WriteString(out, line)
	}
}
