package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"ganglion/internal/device"
	"ganglion/internal/hubtest"
	"ganglion/internal/hubtest/auth"
)

// A site is a NervesHub stand-in on real TCP and TLS in this process, and a
// directory with what a gateway in another needs to reach it.
type site struct {
	t        *testing.T
	dir      string
	hub      *hubtest.Hub
	gate     *gate
	ca       *auth.CA
	registry *auth.Registry
}

// A gate is the hub's listener; it notes when each connection came in.
type gate struct {
	net.Listener
	mu  sync.Mutex // guards was
	was []time.Time
}

// Accept implements [net.Listener].
func (g *gate) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err == nil {
		g.mu.Lock()
		g.was = append(g.was, time.Now())
		g.mu.Unlock()
	}
	return c, err
}

// accepted returns when connections came in.
func (g *gate) accepted() []time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]time.Time(nil), g.was...)
}

// emptySite is one whose hub does not run yet.
func emptySite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), registry: auth.New()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	s.gate = &gate{Listener: l}
	s.ca, err = auth.NewCA("Test Device CA")
	s.must(err)
	s.must(s.registry.AddCA(s.ca.Certificate, false))
	s.must(os.Mkdir(filepath.Join(s.dir, "devices"), 0o700))
	return s
}

// newSite starts a hub that knows the devices, each with a certificate. It ends
// with the test.
func newSite(t *testing.T, ids ...string) *site {
	t.Helper()
	s := emptySite(t)
	server, root, err := auth.NewServerCertificate("127.0.0.1")
	s.must(err)
	s.write("hub-root.pem", string(root))
	s.serve(server)
	for _, id := range ids {
		s.issue(id)
	}
	return s
}

// serve starts the hub with a certificate; the zero one is plain HTTP.
func (s *site) serve(server tls.Certificate) {
	s.hub = hubtest.New(hubtest.Config{Auth: s.registry, Certificate: server})
	served := make(chan error, 1)
	go func() { served <- s.hub.Serve(s.gate) }()
	s.t.Cleanup(func() {
		s.hub.Close()
		if err := <-served; err != nil {
			s.t.Errorf("hub: %v", err)
		}
	})
}

// issue adds a device with a certificate that NervesHub accepts.
func (s *site) issue(id string) {
	s.t.Helper()
	leaf, err := s.ca.Issue(id)
	s.must(err)
	s.add(id, leaf.CertPEM, leaf.KeyPEM)
}

// add registers a device and keeps its certificate and key for the gateway.
func (s *site) add(id string, cert, key []byte) {
	s.t.Helper()
	s.registry.AddDevice(id)
	s.hub.AddDevice(id)
	s.write("devices/"+id+".pem", string(cert))
	s.write("devices/"+id+"-key.pem", string(key))
}

func (s *site) write(name, text string) (path string) {
	s.t.Helper()
	path = filepath.Join(s.dir, name)
	s.must(os.WriteFile(path, []byte(text), 0o600))
	return path
}

// config writes a configuration for the site and returns its path. Variables of
// the environment can change it.
func (s *site) config() string {
	return s.write("ganglion.yaml", fmt.Sprintf(`id: site-7
state_dir: state
hub:
  url: wss://%s/device-socket/websocket
  ca_file: hub-root.pem
  dials_per_second: 50
identity:
  directory:
    path: devices
mqtt:
  embedded:
    listen: 127.0.0.1:0
web:
  listen: 127.0.0.1:0
classes:
  default:
    linger: 1s
`, s.gate.Addr()))
}

// A running gateway is a child that has said ready.
type running struct {
	*child
	mqtt, web string // host:port
}

var readyAddrs = regexp.MustCompile(`\bmqtt=(\S+) web=(\S+)`)

// run starts the gateway and waits until it is ready.
func (s *site) run(environ ...string) running {
	s.t.Helper()
	return s.await(start(s.t, environ, "run", "--config", s.config()))
}

// await waits until c is ready.
func (s *site) await(c *child) running {
	s.t.Helper()
	line := c.until("ready", "mqtt=", "web=")
	m := readyAddrs.FindStringSubmatch(line)
	if m == nil {
		s.t.Fatalf("no addresses in %q", line)
	}
	return running{c, m[1], m[2]}
}

// switchOn runs simulated devices until off is called or the test ends.
func (s *site) switchOn(run func(context.Context) error) (off func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			s.t.Errorf("device: %v", err)
		}
	}()
	off = func() { cancel(); <-done }
	s.t.Cleanup(off)
	return off
}

// device is a simulated one at the gateway's broker.
func (s *site) device(g running, id string) *device.Device {
	return device.New(device.Config{Broker: g.mqtt, ID: id, Boot: 10 * time.Millisecond})
}

// until waits until the hub has seen cond of a device.
func (s *site) until(id, what string, within time.Duration, cond func(hubtest.DeviceState) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), within)
	defer cancel()
	if err := s.hub.Wait(ctx, id, cond); err != nil {
		d, _ := s.hub.Device(id)
		s.t.Fatalf("%s: the hub did not see %s within %s: %s", id, what, within, summary(d))
	}
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func isJoined(d hubtest.DeviceState) bool { return d.Joined }

// get returns a page of the gateway's. It leaves no connection open, which
// would cost the gateway a goroutine.
func (g running) get(path string) (status int, body string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, "http://"+g.web+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Close = true
	client := http.Client{Timeout: patience}
	res, err := client.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// metric is the value of a metric without labels.
func (g running) metric(name string) float64 {
	g.t.Helper()
	_, body := g.get("/metrics")
	for line := range bytes.Lines([]byte(body)) {
		if text, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			v, err := strconv.ParseFloat(string(bytes.TrimSpace(text)), 64)
			if err != nil {
				g.t.Fatalf("%s: %v", name, err)
			}
			return v
		}
	}
	g.t.Fatalf("no %s on /metrics", name)
	return 0
}
