// Package gateway is the process: its configuration, its wiring and its
// teardown. Everything it puts together is decided elsewhere; it knows every
// package of the gateway, and none knows it.
package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"ganglion/bridge"
	"ganglion/mqtt"
	"ganglion/web"
)

// Options are what a test or a demonstration replaces. The zero value is a
// gateway as an operator runs it.
type Options struct {
	Version string
	Log     *slog.Logger // nil: slog.Default()
	Tap     Tap          // nil: none
	// Ready is called once, when every listener is open.
	Ready    func(Addrs)
	Listen   func(network, addr string) (net.Listener, error)                  // nil: net.Listen
	NetDial  func(ctx context.Context, network, addr string) (net.Conn, error) // to NervesHub; nil: net.Dialer
	MQTTDial func(ctx context.Context, network, addr string) (net.Conn, error) // to a foreign broker; nil: net.Dialer
}

// Addrs are where a running gateway listens; empty is off.
type Addrs struct{ MQTT, Web string }

// A Gateway is everything that runs in one process.
type Gateway struct {
	cfg   Config
	opt   Options
	log   *slog.Logger
	addrs Addrs
	boot  uint64
	bus   mqtt.Bus
	fleet *bridge.Fleet
	web   *web.Server   // nil when it is off
	words chan siteWord // 16; from a foreign broker
}

// New opens the listeners of a valid configuration and puts the parts together;
// nothing runs yet. An error names the key that has to change.
func New(c Config, o Options) (*Gateway, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Listen == nil {
		o.Listen = net.Listen
	}
	g := &Gateway{cfg: c, opt: o, log: o.Log, words: make(chan siteWord, 16)}
	var err error
	if g.boot, err = countBoot(c.StateDir); err != nil {
		return nil, err
	}
	fleet, err := g.fleetConfig()
	if err != nil {
		return nil, err
	}
	if g.bus, err = g.newBus(); err != nil {
		return nil, err
	}
	if o.Tap != nil {
		g.bus = tapped{g.bus, o.Tap}
	}
	g.fleet = bridge.New(fleet, g.bus)
	if c.Web.Listen != "" {
		l, err := o.Listen("tcp", c.Web.Listen)
		if err != nil {
			return nil, listenError("web.listen", c.Web.Listen, err)
		}
		g.addrs.Web = l.Addr().String()
		g.web = web.New(web.Config{Listener: l, Gateway: g, Version: o.Version, Log: o.Log})
	}
	return g, nil
}

// newBus is the embedded broker or a client of somebody else's.
func (g *Gateway) newBus() (mqtt.Bus, error) {
	topics := mqtt.Topics{Prefix: g.cfg.MQTT.Prefix}
	if e := g.cfg.MQTT.Embedded; e != nil {
		l, err := g.opt.Listen("tcp", e.Listen)
		if err != nil {
			return nil, listenError("mqtt.embedded.listen", e.Listen, err)
		}
		g.addrs.MQTT = l.Addr().String()
		return mqtt.NewEmbedded(mqtt.EmbeddedConfig{Topics: topics, Listener: l, Log: g.log, MaxDevices: e.MaxDevices})
	}
	e := g.cfg.MQTT.External
	tls, err := e.tls()
	if err != nil {
		return nil, err
	}
	return mqtt.NewExternal(mqtt.ExternalConfig{Topics: topics, URL: e.URL, ClientID: e.ClientID, Username: e.Username,
		Password: string(e.Password), TLS: tls, Log: g.log, Will: g.presence("offline"), OnGateway: g.heard, Dial: g.opt.MQTTDial})
}

// Fleet is for those who watch.
func (g *Gateway) Fleet() *bridge.Fleet { return g.fleet }

// Devices implements [web.Gateway].
func (g *Gateway) Devices() []bridge.Status { return g.fleet.Devices() }

// Counters implements [web.Gateway].
func (g *Gateway) Counters() bridge.Counters { return g.fleet.Counters() }

// Broker implements [web.Gateway].
func (g *Gateway) Broker() (int, map[string]uint64, error) {
	h := g.bus.Health()
	return h.Devices, h.Dropped, h.Err
}

// presence is what <prefix>/gateway says.
func (g *Gateway) presence(state string) mqtt.Message {
	p := struct {
		State   string `json:"state"`
		V       int    `json:"v,omitempty"`
		ID      string `json:"id,omitempty"`
		Boot    uint64 `json:"boot"`
		Version string `json:"version,omitempty"`
	}{State: state, Boot: g.boot}
	if state == "online" {
		p.V, p.ID, p.Version = 1, g.cfg.ID, g.opt.Version
	}
	b, _ := json.Marshal(p) // strings and numbers: cannot fail
	return mqtt.Message{Name: "gateway", Payload: b, Retain: true}
}

// A siteWord is what <prefix>/gateway says on a foreign broker: retained there
// when we connected, or live since.
type siteWord struct {
	payload []byte
	live    bool
}

// heard takes a word from the Bus to Run. When Run has ended nobody listens.
func (g *Gateway) heard(payload []byte, live bool) {
	select {
	case g.words <- siteWord{payload, live}:
	default:
	}
}

// A claim is a gateway's to its prefix on a foreign broker, where another would
// speak for the same devices: the one that is there first stays. After each
// connect a gateway looks before it announces itself, and stops if another is
// online: who lost the connection meanwhile is the newcomer. Two that looked at
// the same time hear both announcements in the broker's order, and the second
// stops.
type claim struct {
	id     string
	online []byte // our announcement
	said   bool   // on this connection, or found retained
	here   bool   // and the broker has repeated it
}

// A verdict is what a word calls for.
type verdict int

const (
	stay     verdict = iota
	announce         // say that we are there
	giveWay          // stop: another is there
	warn             // another came after us and is to stop; what it says in the end has us announce again
)

// judge decides about w; rival is the other's id, if there is one.
func (c *claim) judge(w siteWord) (v verdict, rival string) {
	var p struct{ State, ID string }
	_ = json.Unmarshal(w.payload, &p) // what is not ours to read says nothing of a gateway
	if !w.live {
		c.said, c.here = false, false
	}
	switch {
	case bytes.Equal(w.payload, c.online):
		c.said, c.here = true, true
		return stay, ""
	case p.State == "online" && p.ID != c.id && c.here:
		return warn, p.ID
	case p.State == "online" && p.ID != c.id:
		return giveWay, p.ID
	case p.State == "offline", len(w.payload) == 0, !w.live:
		c.said = true
		return announce, "" // our will, or another's end, was said over us
	}
	return stay, ""
}

// Run serves until ctx ends, and then takes the gateway down in order; it
// returns nil if that was the reason. The whole teardown is bounded by 5 s.
func (g *Gateway) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	parts := newParts(g.log, stop)
	parts.start("web", time.Second, g.runWeb)
	parts.start("broker", 2*time.Second, func(ctx context.Context) error { return g.bus.Run(ctx, g.fleet) })
	parts.start("sessions", 1500*time.Millisecond, g.fleet.Run)
	g.serving(ctx)
	own := claim{id: g.cfg.ID, online: g.presence("online").Payload}
	if g.cfg.MQTT.Embedded != nil {
		own.said = true // nobody else speaks on our own broker
		g.announce()
	}
	g.ready()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case w := <-g.words:
			if err := g.answer(own.judge(w)); err != nil {
				stop(err)
			}
		}
	}
	// Sessions first, while the devices' publishes are no longer taken; then the
	// devices are told, and disconnected.
	parts.stop("sessions")
	if own.said { // or it would be said of another
		g.bus.Publish(g.presence("offline"))
	}
	parts.stop("broker")
	parts.stop("web")
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serving waits until a broker of our own has begun, which takes no time worth
// mentioning; one of others may be away for long.
func (g *Gateway) serving(ctx context.Context) {
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for g.cfg.MQTT.Embedded != nil && g.bus.Health().Err != nil {
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// answer does what a verdict says; its error ends the gateway.
func (g *Gateway) answer(v verdict, rival string) error {
	switch v {
	case announce:
		g.announce()
	case warn:
		g.log.Warn("another gateway came online under our prefix, and has to stop", "id", rival, "prefix", g.cfg.MQTT.Prefix)
	case giveWay:
		return fmt.Errorf("gateway %q is online under mqtt.prefix %q too; give each its own prefix", rival, g.cfg.MQTT.Prefix)
	}
	return nil
}

// announce says on <prefix>/gateway that the gateway is there.
func (g *Gateway) announce() {
	if err := g.bus.Publish(g.presence("online")); err != nil {
		g.log.Warn("the gateway could not announce itself", "err", err)
	}
}

func (g *Gateway) runWeb(ctx context.Context) error {
	if g.web == nil {
		<-ctx.Done()
		return nil
	}
	return g.web.Run(ctx)
}

func (g *Gateway) ready() {
	args := []any{"version", g.opt.Version, "boot", g.boot, "hub", g.cfg.Hub.URL}
	if g.addrs.MQTT != "" {
		args = append(args, "mqtt", g.addrs.MQTT)
	} else {
		args = append(args, "broker", g.cfg.MQTT.External.URL)
	}
	if g.addrs.Web != "" {
		args = append(args, "web", g.addrs.Web)
	}
	g.log.Info("ready", args...)
	if g.opt.Ready != nil {
		g.opt.Ready(g.addrs)
	}
}

// listenError says what is wrong with a listener in the operator's words.
func listenError(key, addr string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: %s is taken by another program; stop that one or choose another port", key, addr)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: this user may not listen on %s; choose a port above 1023", key, addr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: this machine has no address %s; use one it has, or 0.0.0.0", key, addr)
	}
	return fmt.Errorf("%s: listen on %s: %w", key, addr, err)
}
