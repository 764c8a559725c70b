package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ganglion/internal/device"
)

const (
	quietCount  = 20 // with more devices than that, only totals are printed
	totalsEvery = 5 * time.Second
)

// deviceFlags are what `ganglion device` is told beyond the device's Config.
type deviceFlags struct {
	config  device.Config
	faults  []string
	count   int
	stagger time.Duration
	roots   string
	secret  string // file with the broker's password
	once    bool
}

func deviceCommand() *cobra.Command {
	var f deviceFlags
	names := make([]string, len(device.Faults))
	for i, fault := range device.Faults {
		names[i] = string(fault)
	}
	cmd := &cobra.Command{
		Use:   "device --broker HOST:PORT --id ID",
		Short: "Run simulated microcontrollers against an MQTT broker",
		Long: "Runs a simulated microcontroller, or --count of them named ID-0001 and so on, that speak the MQTT contract\n" +
			"and take updates in the passthrough form. Prints one line per event, or with more than 20 devices the totals.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("seed") {
				f.config.Seed = rand.Uint64N(1e9)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return runDevices(ctx, cmd.OutOrStdout(), f)
		},
	}
	c, fw := &f.config, device.DefaultFirmware
	fs := cmd.Flags()
	fs.StringVar(&c.Broker, "broker", "127.0.0.1:1883", "the broker, `HOST:PORT`")
	fs.StringVar(&c.ID, "id", "", "NervesHub `identifier`, also the MQTT client id")
	fs.StringVar(&c.Prefix, "prefix", "nh", "of all topics")
	fs.StringVar(&c.Username, "username", "", "for the broker")
	fs.StringVar(&f.secret, "password-file", "", "`file` with the password for the broker")
	fs.IntVar(&f.count, "count", 1, "how many devices")
	fs.DurationVar(&f.stagger, "stagger", 10*time.Millisecond, "between two devices' starts")
	fs.StringArrayVar(&f.faults, "fault", nil, "a way to misbehave, may be repeated: "+strings.Join(names, " "))
	fs.DurationVar(&c.Trouble, "trouble", 5*time.Second, "mean time between random faults")
	fs.Uint64Var(&c.Seed, "seed", 0, "of all chance (default random)")
	fs.IntVar(&c.Packet, "packet", 2048, "largest MQTT packet, `bytes`")
	fs.DurationVar(&c.Keepalive, "keepalive", 30*time.Second, "of MQTT")
	fs.DurationVar(&c.Boot, "boot", time.Second, "from a reset to the first dial")
	fs.IntVar(&c.Flash, "flash", 256<<10, "speed of the flash, `bytes` per second")
	fs.StringVar(&c.Interface, "interface", "", "network interface to report: wifi, ethernet, cellular")
	fs.BoolVar(&c.ShortHello, "short", false, "use the short payloads")
	fs.BoolVar(&c.Online, "online", false, "keep up/online retained, for a broker other than the embedded one")
	fs.StringVar(&c.Firmware.Version, "version", fw.Version, "firmware version that runs at first")
	fs.StringVar(&c.Firmware.UUID, "uuid", fw.UUID, "its uuid; empty: say the version only")
	fs.StringVar(&c.Firmware.Product, "product", fw.Product, "its product")
	fs.StringVar(&c.Firmware.Platform, "platform", fw.Platform, "its platform")
	fs.StringVar(&c.Firmware.Architecture, "architecture", fw.Architecture, "its architecture")
	fs.StringVar(&f.roots, "roots", "", "PEM `file` of roots for the download server, instead of the system's")
	fs.BoolVar(&f.once, "once", false, "end when every device runs an update and has validated it")
	return cmd
}

func runDevices(ctx context.Context, out io.Writer, f deviceFlags) error {
	for _, name := range f.faults {
		f.config.Faults = append(f.config.Faults, device.Fault(name))
	}
	if f.count < 1 || f.count > 9999 {
		return usageError{fmt.Errorf("device: count: %d is not 1 to 9999", f.count)}
	}
	if f.secret != "" {
		b, err := os.ReadFile(f.secret)
		if err != nil {
			return usageError{fmt.Errorf("device: password-file: %w", err)}
		}
		f.config.Password = strings.TrimSpace(string(b))
	}
	client, err := downloads(f.roots)
	if err != nil {
		return usageError{err}
	}
	f.config.HTTP = client
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &devicePrinter{out: out, quiet: f.count > quietCount, updated: map[string]bool{}}
	if f.once {
		p.left, p.done = f.count, cancel
	}
	f.config.Log = p.event
	fleet := device.NewFleet(f.config, f.count, f.stagger)
	if err := fleet.Check(); err != nil {
		return usageError{err}
	}
	fmt.Fprintf(out, "seed %d\n", f.config.Seed)
	var totals sync.WaitGroup
	if p.quiet {
		totals.Go(func() { p.totals(ctx, fleet) })
	}
	err = fleet.Run(ctx)
	cancel()
	totals.Wait()
	if p.quiet {
		fmt.Fprintln(out, fleet.Totals())
	}
	return err
}

// downloads is the client of all devices. It keeps no connections: a device
// asks once per update.
func downloads(roots string) (*http.Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableKeepAlives = true
	if roots != "" {
		pem, err := os.ReadFile(roots)
		if err != nil {
			return nil, fmt.Errorf("device: roots: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, errors.New("device: roots: " + roots + " holds no PEM certificate")
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return &http.Client{Transport: t}, nil
}

// A devicePrinter writes the events of all devices, one line each.
type devicePrinter struct {
	quiet bool
	done  func() // called when left reaches zero; nil: never

	mu      sync.Mutex // guards what follows
	out     io.Writer
	updated map[string]bool // devices that validated an update
	left    int
}

func (p *devicePrinter) event(e device.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.quiet {
		fmt.Fprintln(p.out, e)
	}
	if _, ok := e.What.(device.Validated); !ok || p.done == nil || p.updated[e.Device] {
		return
	}
	p.updated[e.Device] = true
	if p.left--; p.left == 0 {
		p.done()
	}
}

func (p *devicePrinter) totals(ctx context.Context, fleet *device.Fleet) {
	tick := time.NewTicker(totalsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			fmt.Fprintln(p.out, fleet.Totals())
		}
	}
}
