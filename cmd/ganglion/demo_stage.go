package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ganglion/internal/device"
	"ganglion/internal/gateway"
	"ganglion/internal/hubtest"
	"ganglion/internal/hubtest/auth"
)

const (
	demoID   = "soil-probe-1"
	secondID = "soil-probe-2" // known to the stand-in, for the visitor
	imageLen = 384 << 10      // bytes
	flash    = 128 << 10      // bytes/s
)

// A stage has everything the demonstration plays on. Nothing runs before run.
type stage struct {
	tell    *teller
	hub     *hubtest.Hub
	gate    net.Listener // NervesHub's device endpoint
	web     net.Listener // its downloads
	api     net.Listener
	gateway *gateway.Gateway
	addrs   chan gateway.Addrs // 1; from ready
	at      gateway.Addrs
	next    hubtest.Firmware
}

func newStage(dir string, tell *teller) (*stage, error) {
	s := &stage{tell: tell, addrs: make(chan gateway.Addrs, 1)}
	for _, l := range []*net.Listener{&s.gate, &s.web, &s.api} {
		var err error
		if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
	}
	tell.say("NervesHub", "a stand-in listens on %s (mutual TLS)", s.gate.Addr())
	if err := s.newHub(dir); err != nil {
		return nil, fmt.Errorf("NervesHub stand-in: %w", err)
	}
	config := gateway.Default()
	config.ID, config.StateDir = "demo", filepath.Join(dir, "state")
	config.Hub.URL = fmt.Sprintf("wss://%s/device-socket/websocket", s.gate.Addr())
	config.Hub.CAFile = filepath.Join(dir, "hub-root.pem")
	config.Identity.Directory = &gateway.Directory{Path: filepath.Join(dir, "devices")}
	config.MQTT.Embedded.Listen, config.Web.Listen = "127.0.0.1:0", "127.0.0.1:0"
	var err error
	s.gateway, err = gateway.New(config, gateway.Options{Version: version(), Log: tell.log("gateway"), Tap: s.heard,
		Ready: func(a gateway.Addrs) { s.addrs <- a }})
	return s, err
}

// newHub makes a NervesHub with two devices, their certificates, and a product
// with two firmwares.
func (s *stage) newHub(dir string) error {
	server, root, err := auth.NewServerCertificate("127.0.0.1")
	if err != nil {
		return err
	}
	ca, err := auth.NewCA("Demo Device CA")
	if err != nil {
		return err
	}
	registry := auth.New()
	if err := registry.AddCA(ca.Certificate, false); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "devices"), 0o700); err != nil {
		return err
	}
	files := map[string][]byte{"hub-root.pem": root}
	for _, id := range []string{demoID, secondID} {
		leaf, err := ca.Issue(id)
		if err != nil {
			return err
		}
		registry.AddDevice(id)
		files["devices/"+id+".pem"], files["devices/"+id+"-key.pem"] = leaf.CertPEM, leaf.KeyPEM
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	s.hub = hubtest.New(hubtest.Config{Auth: registry, Certificate: server, WebURL: "http://" + s.web.Addr().String(),
		ScheduleEvery: 200 * time.Millisecond, Log: func(e hubtest.Entry) { s.tell.say("NervesHub", "%s %s", e.Device, e.Text) }})
	fw := device.DefaultFirmware
	s.next = hubtest.Firmware{UUID: "3c55399b-96d9-5a6a-2a3c-4dc82b781299", Version: "1.1.0", Product: fw.Product,
		Platform: fw.Platform, Architecture: fw.Architecture, Image: image()}
	s.hub.AddFirmware(s.next)
	s.hub.AddDevice(demoID)
	s.hub.AddDevice(secondID)
	return nil
}

// image is a firmware that does not compress to nothing.
func image() []byte {
	var b bytes.Buffer
	for sum := sha256.Sum256([]byte("ganglion demo")); b.Len() < imageLen; sum = sha256.Sum256(sum[:]) {
		b.Write(sum[:])
	}
	return b.Bytes()[:imageLen]
}

// run starts everything; a part that fails cancels ctx with the reason. The
// function it returns waits for the end.
func (s *stage) run(ctx context.Context, cancel context.CancelCauseFunc) (ended func() error) {
	var wg sync.WaitGroup
	part := func(name string, run func() error) {
		wg.Go(func() {
			if err := run(); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	api := &http.Server{Handler: s.hub.API(), ReadHeaderTimeout: 5 * time.Second}
	part("NervesHub stand-in", func() error { return s.hub.Serve(s.gate) })
	part("downloads", func() error { return s.hub.ServeWeb(s.web) })
	part("stand-in API", func() error {
		if err := api.Serve(s.api); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	gatewayEnded := make(chan struct{})
	part("gateway", func() error {
		defer close(gatewayEnded)
		return s.gateway.Run(ctx)
	})
	part("device", func() error {
		select {
		case s.at = <-s.addrs:
		case <-ctx.Done():
			return nil
		}
		s.tell.say("gateway", "ready: MQTT on %s, health and metrics on http://%s", s.at.MQTT, s.at.Web)
		return s.device().Run(ctx)
	})
	return func() error {
		<-gatewayEnded // it says goodbye to NervesHub first
		err := errors.Join(s.hub.Close(), api.Close())
		wg.Wait()
		return err
	}
}

func (s *stage) device() *device.Device {
	return device.New(device.Config{Broker: s.at.MQTT, ID: demoID, Flash: flash, Boot: 500 * time.Millisecond,
		Log: func(e device.Event) { s.tell.say("device", "%s %s", e.Device, e.What) }})
}

// heard tells what passes over MQTT. The device's own words for it follow or
// came before, so payloads are shown and nothing is explained.
func (s *stage) heard(up bool, id, name string, payload []byte) {
	side := "down"
	if up {
		side = "up"
	}
	if id == "" {
		s.tell.say("MQTT", "nh/%s %s", name, short(payload))
		return
	}
	s.tell.say("MQTT", "nh/%s/%s/%s %s", id, side, name, short(payload))
}

func short(p []byte) string {
	const most = 100
	switch {
	case len(p) == 0:
		return "(empty)"
	case len(p) <= most:
		return string(p)
	}
	return strings.ToValidUTF8(string(p[:most]), "") + "…"
}

func (s *stage) mqttPort() string {
	_, port, _ := net.SplitHostPort(s.at.MQTT)
	return port
}

// A step of the story is something NervesHub has to see, and what follows.
type step struct {
	what string
	seen func(hubtest.DeviceState) bool
	then func() error
}

func (s *stage) steps() []step {
	return []step{
		{"the device join", func(d hubtest.DeviceState) bool { return d.Joined && d.Metadata != nil }, func() error {
			s.tell.say("NervesHub", "an operator releases %s", s.next.Version)
			return s.hub.SetRelease(s.next.UUID)
		}},
		{"the update received", func(d hubtest.DeviceState) bool { return said(d, "status_update", `"received"`) }, nil},
		{"any progress", func(d hubtest.DeviceState) bool { return said(d, "fwup_progress", "") }, nil},
		{"the new version", func(d hubtest.DeviceState) bool { return d.Metadata.UUID == s.next.UUID && d.Successes == 1 }, nil},
		{"the firmware validated", func(d hubtest.DeviceState) bool { return d.Validation == "validated" }, nil},
	}
}

// said reports whether the device has sent event with text in its payload.
func said(d hubtest.DeviceState, event, text string) bool {
	for _, f := range d.Frames {
		if f.Dir == "up" && f.Event == event && strings.Contains(string(f.Payload), text) {
			return true
		}
	}
	return false
}

// summary is what NervesHub has on record, for a story that went wrong.
func summary(d hubtest.DeviceState) string {
	b, _ := json.Marshal(map[string]any{"joined": d.Joined, "metadata": d.Metadata, "validation": d.Validation, "inflight": d.Inflight,
		"attempts": len(d.Attempts), "crashes": d.Crashes, "refused": d.Refused, "false_successes": d.FalseSuccesses, "phantom_rows": d.PhantomRows})
	return string(b)
}

// A teller prints one line per thing that happened: when, where, what.
type teller struct {
	begun time.Time
	mu    sync.Mutex // guards out
	out   io.Writer
}

func newTeller(out io.Writer) *teller {
	t := &teller{begun: time.Now(), out: out}
	fmt.Fprintf(out, "%6s    %-10s %s\n", "time", "seen at", "what happened")
	return t
}

func (t *teller) say(where, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "%6.2f s  %-10s %s\n", time.Since(t.begun).Seconds(), where, fmt.Sprintf(format, args...))
}

// log is for somebody's warnings: they belong to the story when there are any.
func (t *teller) log(where string) *slog.Logger {
	untimed := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(slog.NewTextHandler(logTeller{t, where}, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: untimed}))
}

// A logTeller tells each line of a log.
type logTeller struct {
	*teller
	where string
}

// Write implements [io.Writer].
func (t logTeller) Write(line []byte) (int, error) {
	t.say(t.where, "%s", bytes.TrimSpace(line))
	return len(line), nil
}
