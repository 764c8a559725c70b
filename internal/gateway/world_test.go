package gateway_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ganglion/internal/device"
	"ganglion/internal/gateway"
	"ganglion/internal/hubtest"
	"ganglion/internal/hubtest/auth"
	"ganglion/internal/memnet"
)

// A world is the whole story in one bubble: a NervesHub stand-in with mutual
// TLS, the gateway with its embedded broker, and simulated microcontrollers, on
// networks of memory and in time that costs nothing.
type world struct {
	t        *testing.T
	hub      *hubtest.Hub
	hubNet   *memnet.Listener // NervesHub's device endpoint
	filesNet *memnet.Listener // its downloads
	mqttNet  *memnet.Listener // the embedded broker
	config   gateway.Config
	ca       *auth.CA
	registry *auth.Registry
	dir      string
	log      *logged

	stop    context.CancelFunc
	stopped sync.WaitGroup
	devices map[string]*device.Device
}

// logged collects the gateway's log, to show it when a test fails.
type logged struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// firmware returns what simulated devices run, in a version.
func firmware(version, uuid string) hubtest.Firmware {
	fw := device.DefaultFirmware
	return hubtest.Firmware{UUID: uuid, Version: version, Product: fw.Product, Platform: fw.Platform,
		Architecture: fw.Architecture, Image: bytes.Repeat([]byte(version), 4096)}
}

const (
	uuid11 = "3c55399b-96d9-5a6a-2a3c-4dc82b781299"
	uuid12 = "0b9f6a34-7f43-5a1e-9d0b-6a1f2f0e8a77"
)

// newWorld starts a hub and a gateway for the named devices. Everything has
// ended when the test has.
func newWorld(t *testing.T, ids []string, change func(*gateway.Config, *hubtest.Config)) *world {
	t.Helper()
	w := &world{t: t, hubNet: memnet.Listen(), filesNet: memnet.Listen(), mqttNet: memnet.Listen(),
		registry: auth.New(), dir: t.TempDir(), log: &logged{}, devices: map[string]*device.Device{}}
	server, root, err := auth.NewServerCertificate("hub.test")
	w.must(err)
	w.ca, err = auth.NewCA("Test Device CA")
	w.must(err)
	w.must(w.registry.AddCA(w.ca.Certificate, false))
	w.must(os.Mkdir(filepath.Join(w.dir, "devices"), 0o700))
	w.must(os.WriteFile(filepath.Join(w.dir, "root.pem"), root, 0o600))
	for _, id := range ids {
		w.issue(id)
	}
	hubConfig := hubtest.Config{Auth: w.registry, Certificate: server, WebURL: "http://files.test"}
	config := gateway.Default()
	config.ID, config.StateDir = "site-7", filepath.Join(w.dir, "state")
	config.Hub.URL, config.Hub.CAFile = "wss://hub.test/device-socket/websocket", filepath.Join(w.dir, "root.pem")
	config.Identity.Directory = &gateway.Directory{Path: filepath.Join(w.dir, "devices")}
	config.MQTT.Embedded.Listen, config.Web.Listen = "mqtt", "web"
	if change != nil {
		change(&config, &hubConfig)
	}
	w.hub = hubtest.New(hubConfig)
	for _, id := range ids {
		w.hub.AddDevice(id)
	}
	w.hub.AddFirmware(firmware("1.1.0", uuid11))
	w.hub.AddFirmware(firmware("1.2.0", uuid12))
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.goRun("hub", func() error { return w.hub.Serve(w.hubNet) })
	w.goRun("downloads", func() error { return w.hub.ServeWeb(w.filesNet) })
	w.startGateway(ctx, config, w.mqttNet)
	t.Cleanup(w.end)
	return w
}

// startGateway runs one with its broker on mqttNet, until ctx ends.
func (w *world) startGateway(ctx context.Context, config gateway.Config, mqttNet net.Listener) {
	w.t.Helper()
	w.config = config
	g, err := gateway.New(config, gateway.Options{
		Version: "0.0.0", Log: slog.New(slog.NewTextHandler(w.log, nil)), NetDial: w.hubNet.Dial,
		Listen: func(_, addr string) (net.Listener, error) {
			if addr == "web" {
				return memnet.Listen(), nil
			}
			return mqttNet, nil
		},
	})
	w.must(err)
	w.goRun("gateway", func() error { return g.Run(ctx) })
}

// issue gives a device its certificate.
func (w *world) issue(id string) {
	w.t.Helper()
	leaf, err := w.ca.Issue(id)
	w.must(err)
	w.registry.AddDevice(id)
	base := filepath.Join(w.dir, "devices", id)
	w.must(os.WriteFile(base+".pem", leaf.CertPEM, 0o600))
	w.must(os.WriteFile(base+"-key.pem", leaf.KeyPEM, 0o600))
}

func (w *world) goRun(name string, run func() error) {
	w.stopped.Go(func() {
		if err := run(); err != nil {
			w.t.Errorf("%s: %v", name, err)
		}
	})
}

// switchOn starts a device and returns how to switch it off.
func (w *world) switchOn(id string, change func(*device.Config)) (off func()) {
	w.t.Helper()
	c := device.Config{Broker: "broker:1883", ID: id, Dial: w.mqttNet.Dial, HTTP: w.download(), Boot: time.Second}
	if change != nil {
		change(&c)
	}
	d := device.New(c)
	w.devices[id] = d
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.stopped.Go(func() {
		defer close(done)
		if err := d.Run(ctx); err != nil {
			w.t.Errorf("device %s: %v", id, err)
		}
	})
	w.t.Cleanup(cancel)
	return func() { cancel(); <-done }
}

func (w *world) download() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: w.filesNet.Dial, DisableKeepAlives: true}}
}

// until waits until the hub has seen cond of a device, at most limit of fake
// time.
func (w *world) until(id, what string, limit time.Duration, cond func(hubtest.DeviceState) bool) hubtest.DeviceState {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := w.hub.Wait(ctx, id, cond); err != nil {
		w.t.Fatalf("%s: the hub did not see %s within %s; it has %s\nlog:\n%s", id, what, limit, w.state(id), w.log)
	}
	d, _ := w.hub.Device(id)
	return d
}

func (w *world) state(id string) string {
	d, _ := w.hub.Device(id)
	frames := ""
	for _, f := range d.Frames {
		if f.Event != "heartbeat" && f.Topic != "phoenix" {
			frames += fmt.Sprintf("\n  %s %s %s %.200s", f.Time.Format("15:04:05.000"), f.Dir, f.Event, f.Payload)
		}
	}
	return fmt.Sprintf("joined=%t joins=%d connections=%d metadata=%+v inflight=%+v attempts=%d crashes=%+v%s",
		d.Joined, d.Joins, d.Connections, d.Metadata, d.Inflight, len(d.Attempts), d.Crashes, frames)
}

// clean fails the test if NervesHub ever had reason to complain of a device.
func (w *world) clean(id string) {
	w.t.Helper()
	d, _ := w.hub.Device(id)
	if len(d.Crashes) > 0 || d.FalseSuccesses > 0 || d.PhantomRows > 0 {
		w.t.Errorf("%s: %d crashes, %d false successes, %d phantom rows: %s", id, len(d.Crashes), d.FalseSuccesses, d.PhantomRows, w.state(id))
	}
}

func (w *world) end() {
	w.stop()
	w.hub.Close()
	w.stopped.Wait()
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func joined(d hubtest.DeviceState) bool { return d.Joined }

// said counts the frames of an event that hold text.
func said(d hubtest.DeviceState, event, text string) int {
	n := 0
	for _, f := range d.Frames {
		if f.Dir == "up" && f.Event == event && strings.Contains(string(f.Payload), text) {
			n++
		}
	}
	return n
}
