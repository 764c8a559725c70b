package bridge_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/bridge"
	"ganglion/identity"
	"ganglion/internal/hubtest"
	"ganglion/internal/hubtest/auth"
	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

const (
	uuid10 = "3c55399b-96d9-5a6a-2a3c-4dc82b781290"
	uuid11 = "3c55399b-96d9-5a6a-2a3c-4dc82b781291"
	uuid12 = "3c55399b-96d9-5a6a-2a3c-4dc82b781292"
)

// A ledger is a Bus that writes down what the Fleet publishes. The test speaks
// for the devices.
type ledger struct {
	mu   sync.Mutex // guards what follows
	got  []mqtt.Message
	away map[string]bool
}

func (l *ledger) Run(ctx context.Context, _ mqtt.Handler) error { <-ctx.Done(); return nil }

func (l *ledger) Health() mqtt.Health { return mqtt.Health{} }

func (l *ledger) Publish(m mqtt.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away[m.Device] && !m.Retain {
		return mqtt.ErrAbsent
	}
	l.got = append(l.got, m)
	return nil
}

// published lists the payloads a device was sent under name.
func (l *ledger) published(device, name string) (payloads []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.got {
		if m.Device == device && m.Name == name {
			payloads = append(payloads, string(m.Payload))
		}
	}
	return payloads
}

// A site is a Fleet and a NervesHub stand-in, with mutual TLS in between.
type site struct {
	*testing.T
	hub   *hubtest.Hub
	bus   *ledger
	fleet *bridge.Fleet
	log   bytes.Buffer
	stop  context.CancelFunc // of the Fleet
}

// inBubble runs f with a site that has the named devices. Everything must have
// ended when f returns and the site is taken down.
func inBubble(t *testing.T, devices []string, f func(s *site)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &site{T: t, bus: &ledger{away: map[string]bool{}}}
		registry, hubNet, dir := auth.New(), memnet.Listen(), t.TempDir()
		server, root, err := auth.NewServerCertificate("hub.test")
		s.must(err)
		ca, err := auth.NewCA("CA")
		s.must(err)
		s.must(registry.AddCA(ca.Certificate, false))
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(root)
		s.hub = hubtest.New(hubtest.Config{Auth: registry, Certificate: server, WebURL: "http://files.test"})
		for _, id := range devices {
			leaf, err := ca.Issue(id)
			s.must(err)
			registry.AddDevice(id)
			s.hub.AddDevice(id)
			s.must(os.WriteFile(filepath.Join(dir, id+".pem"), leaf.CertPEM, 0o600))
			s.must(os.WriteFile(filepath.Join(dir, id+"-key.pem"), leaf.KeyPEM, 0o600))
		}
		for i, u := range []string{uuid10, uuid11, uuid12} {
			s.hub.AddFirmware(hubtest.Firmware{UUID: u, Version: fmt.Sprintf("1.%d.0", i), Product: "p", Platform: "f", Architecture: "a", Image: []byte(u)})
		}
		s.fleet = bridge.New(bridge.Config{URL: "wss://hub.test/device-socket/websocket", TLS: &tls.Config{RootCAs: pool},
			Identity: identity.NewDirectory(dir), NetDial: hubNet.Dial, Log: slog.New(slog.NewTextHandler(&s.log, nil))}, s.bus)
		ctx, stop := context.WithCancel(context.Background())
		s.stop = stop
		var wg sync.WaitGroup
		wg.Go(func() { s.hub.Serve(hubNet) })
		wg.Go(func() { s.fleet.Run(ctx) })
		defer wg.Wait()
		defer s.hub.Close()
		defer stop()
		f(s)
	})
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *site) online(device string) { s.fleet.Online(device, mqtt.Client{Version: 4}) }

func (s *site) say(device, name, payload string) {
	s.Helper()
	s.must(s.fleet.Received(device, name, []byte(payload)))
}

func (s *site) hello(device, uuid, version, more string) {
	s.Helper()
	s.say(device, "hello", fmt.Sprintf(`{"version":%q,"uuid":%q,"product":"p","platform":"f","architecture":"a"%s}`, version, uuid, more))
}

// joined brings a device up on 1.0.0.
func (s *site) joined(device string) {
	s.Helper()
	s.online(device)
	s.hello(device, uuid10, "1.0.0", "")
	s.until(device, "a join", func(d hubtest.DeviceState) bool { return d.Joined })
}

func (s *site) until(device, what string, cond func(hubtest.DeviceState) bool) hubtest.DeviceState {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := s.hub.Wait(ctx, device, cond); err != nil {
		s.Fatalf("the hub did not see %s of %s:\n%s", what, device, s.story(device))
	}
	return s.state(device)
}

func (s *site) state(device string) hubtest.DeviceState {
	d, _ := s.hub.Device(device)
	return d
}

func (s *site) story(device string) string {
	d := s.state(device)
	b := fmt.Sprintf("crashes %+v phantoms %d false %d attempts %d inflight %+v", d.Crashes, d.PhantomRows, d.FalseSuccesses, len(d.Attempts), d.Inflight)
	for _, f := range d.Frames {
		if f.Topic != "phoenix" {
			b += fmt.Sprintf("\n  %s %s %s %.150s", f.Time.Format("15:04:05.000"), f.Dir, f.Event, f.Payload)
		}
	}
	return b
}

// clean fails the test if NervesHub had reason to complain.
func (s *site) clean(device string) {
	s.Helper()
	if d := s.state(device); len(d.Crashes)+d.PhantomRows+d.FalseSuccesses > 0 {
		s.Errorf("not clean: %s", s.story(device))
	}
}

// offered releases 1.1.0 and waits until the device was told.
func (s *site) offered(device string) {
	s.Helper()
	s.must(s.hub.SetRelease(uuid11))
	s.until(device, "an offer", func(d hubtest.DeviceState) bool { return d.Inflight != nil })
	time.Sleep(time.Second)
}

// TestLastWords: what was acknowledged goes up before the gateway ends.
func TestLastWords(t *testing.T) {
	for i := range 20 {
		inBubble(t, []string{"d"}, func(s *site) {
			s.joined("d")
			s.offered("d")
			s.say("d", "status", "failed bad flash")
			s.stop()
			d := s.until("d", "the goodbye", func(d hubtest.DeviceState) bool { return !d.Socket })
			if d.Inflight != nil || !slices.ContainsFunc(d.Frames, func(f hubtest.Frame) bool { return strings.Contains(string(f.Payload), "bad flash") }) {
				s.Fatalf("try %d: lost: %s", i, s.story("d"))
			}
			s.clean("d")
		})
	}
}

// TestLostLastWord: a last word that may have been lost with its link is told
// when the update is offered again, and only then.
func TestLostLastWord(t *testing.T) {
	for name, lose := range map[string]func(s *site){
		"lost with a half-open link": func(s *site) { s.must(s.hub.Vanish("d")); s.say("d", "status", "failed bad flash") },
		"heard, and then the link": func(s *site) {
			s.say("d", "status", "failed bad flash")
			time.Sleep(time.Second)
			s.must(s.hub.Drop("d"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, []string{"d"}, func(s *site) {
				s.joined("d")
				s.offered("d")
				s.say("d", "status", "received")
				time.Sleep(time.Minute)
				lose(s)
				time.Sleep(4 * time.Minute)
				d := s.state("d")
				if d.Inflight != nil || !d.Joined || !d.BlockedUntil.After(time.Now()) {
					s.Errorf("NervesHub does not know of the failure: %s", s.story("d"))
				}
				s.clean("d")
			})
		})
	}
}

// TestOfferLetGo: an offer nobody acted on is forgotten by a join. What the
// device says before it comes again never reaches NervesHub.
func TestOfferLetGo(t *testing.T) {
	for _, word := range []string{"received", "failed no space", "rescheduled 1000"} {
		for name, letGo := range map[string]func(s *site){
			"link lost":     func(s *site) { s.must(s.hub.Drop("d")) },
			"channel crash": func(s *site) { s.must(s.hub.CrashChannel("d")) },
			"new metadata":  func(s *site) { s.hello("d", uuid10, "1.0.0", `,"validated":true`) },
		} {
			t.Run(name+", "+word, func(t *testing.T) {
				inBubble(t, []string{"d"}, func(s *site) {
					s.joined("d")
					s.offered("d")
					crashes := 0
					if name == "channel crash" {
						crashes = 1
					}
					joins := s.state("d").Joins
					letGo(s)
					s.until("d", "another join", func(d hubtest.DeviceState) bool { return d.Joined && d.Joins > joins })
					s.say("d", "status", word)
					time.Sleep(10 * time.Second)
					if d := s.state("d"); len(d.Crashes) != crashes || d.PhantomRows > 0 {
						s.Error(s.story("d"))
					}
				})
			})
		}
	}
}

// TestFastUpdate: a device that is done before NervesHub can hear of anything is
// still seen to have received, started and got on.
func TestFastUpdate(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		s.joined("d")
		s.must(s.hub.SetRelease(uuid11))
		for len(s.bus.published("d", "update")) < 2 {
			time.Sleep(time.Millisecond)
		}
		s.say("d", "progress", "50")
		s.say("d", "rebooting", "")
		s.fleet.Offline("d")
		s.online("d")
		s.hello("d", uuid11, "1.1.0", "")
		s.say("d", "validated", "")
		d := s.until("d", "1.1.0 validated", func(d hubtest.DeviceState) bool {
			return d.Metadata.UUID == uuid11 && d.Validation == "validated"
		})
		for _, want := range []string{`"received"`, `"started"`, `"value":50`} {
			if !slices.ContainsFunc(d.Frames, func(f hubtest.Frame) bool { return strings.Contains(string(f.Payload), want) }) {
				s.Errorf("no %s: %s", want, s.story("d"))
			}
		}
		if d.Successes != 1 {
			s.Error(s.story("d"))
		}
		s.clean("d")
	})
}

// TestBootLoop: a device that starts over every minute keeps no row alive, and
// makes none.
func TestBootLoop(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		s.joined("d")
		s.offered("d")
		for range 50 {
			s.say("d", "progress", "0")
			time.Sleep(30 * time.Second)
			s.fleet.Offline("d")
			time.Sleep(2 * time.Second)
			s.online("d")
			s.hello("d", uuid10, "1.0.0", "")
			time.Sleep(28 * time.Second)
		}
		s.clean("d")
	})
}

// TestDeferredReboot: a device that has completed and not rebooted yet has not
// reverted, however its radio flaps.
func TestDeferredReboot(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		s.joined("d")
		s.offered("d")
		s.say("d", "status", "completed")
		s.fleet.Offline("d")
		time.Sleep(time.Second)
		s.online("d")
		s.hello("d", uuid10, "1.0.0", "")
		time.Sleep(time.Minute)
		if d := s.state("d"); !d.BlockedUntil.IsZero() {
			s.Fatalf("blocked: %s", s.story("d"))
		}
		s.say("d", "rebooting", "")
		s.hello("d", uuid11, "1.1.0", "")
		s.until("d", "1.1.0", func(d hubtest.DeviceState) bool { return d.Metadata.UUID == uuid11 && d.Successes == 1 })
		s.clean("d")
	})
}

// TestOldOffer: a device that comes back after a day is not handed a URL of
// yesterday.
func TestOldOffer(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		s.joined("d")
		s.offered("d")
		before := len(s.bus.published("d", "update"))
		s.fleet.Offline("d")
		time.Sleep(25 * time.Hour)
		s.online("d")
		s.hello("d", uuid10, "1.0.0", "")
		if got := s.bus.published("d", "update")[before:]; len(got) > 0 && got[0] != "" {
			s.Errorf("handed out at once: %s", got[0])
		}
		time.Sleep(10 * time.Second)
		if got := s.bus.published("d", "update"); got[len(got)-1] == "" {
			s.Errorf("no fresh offer came: %s", s.story("d"))
		}
		s.clean("d")
	})
}

// TestHeldCommand: a command outlives the linger, and not its time to live.
func TestHeldCommand(t *testing.T) {
	for _, tt := range []struct {
		away time.Duration
		want int
	}{{5 * time.Second, 1}, {35 * time.Second, 1}, {90 * time.Second, 0}} {
		t.Run(tt.away.String(), func(t *testing.T) {
			inBubble(t, []string{"d"}, func(s *site) {
				s.joined("d")
				s.fleet.Offline("d")
				time.Sleep(time.Second)
				s.must(s.hub.Identify("d"))
				time.Sleep(tt.away)
				s.online("d")
				s.hello("d", uuid10, "1.0.0", "")
				time.Sleep(5 * time.Second)
				if got := s.bus.published("d", "identify"); len(got) != tt.want {
					s.Errorf("%d commands came, want %d", len(got), tt.want)
				}
				if n := s.fleet.Counters().Dropped["expired"]; int(n) != 1-tt.want {
					s.Errorf("%d counted as expired", n)
				}
			})
		})
	}
}

// TestMeetsAbsence: a command that the Bus could not deliver any more is kept.
func TestMeetsAbsence(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		s.joined("d")
		s.bus.mu.Lock()
		s.bus.away["d"] = true
		s.bus.mu.Unlock()
		s.must(s.hub.Identify("d"))
		time.Sleep(time.Second)
		s.fleet.Offline("d")
		s.bus.mu.Lock()
		s.bus.away["d"] = false
		s.bus.mu.Unlock()
		s.online("d")
		time.Sleep(time.Second)
		if got := s.bus.published("d", "identify"); len(got) != 1 {
			s.Errorf("got %q", got)
		}
	})
}

// TestNobodyStays: Sessions of devices that came and went, or only had a publish
// refused, end.
func TestNobodyStays(t *testing.T) {
	inBubble(t, nil, func(s *site) {
		for i := range 100 {
			id := fmt.Sprint("x", i)
			s.online(id)
			s.fleet.Offline(id)
		}
		s.fleet.Refused("ghost", "status", mqtt.ErrRetained)
		synctest.Wait()
		if n := len(s.fleet.Devices()); n != 101 {
			s.Errorf("%d Sessions at first", n)
		}
		time.Sleep(time.Minute)
		if n := len(s.fleet.Devices()); n != 0 {
			s.Errorf("%d Sessions after a minute", n)
		}
	})
}

// TestGate: devices that stopped waiting for a dial take nobody's turn.
func TestGate(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		for i := range 1000 {
			id := fmt.Sprint("x", i)
			s.online(id)
			s.hello(id, uuid10, "1.0.0", "")
		}
		for i := range 1000 {
			s.fleet.Offline(fmt.Sprint("x", i))
		}
		time.Sleep(31 * time.Second) // the linger
		begun := time.Now()
		s.joined("d")
		if took := time.Since(begun); took > 2*time.Second {
			s.Errorf("waited %s behind devices that have left", took)
		}
	})
}

// TestFickle: a device that changes its mind joins at most once a second.
func TestFickle(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		s.joined("d")
		for i := range 200 {
			s.hello("d", uuid10, "1.0.0", fmt.Sprintf(`,"validated":%t`, i%2 == 0))
			s.say("d", "validated", "")
			s.say("d", "interface", "wifi")
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		d := s.state("d")
		if d.Joins > 5 {
			s.Errorf("%d joins in 2 s", d.Joins)
		}
		if n := s.fleet.Counters().Hub["report_network_interface"]; int(n) > d.Joins {
			s.Errorf("the interface was reported %d times in %d joins", n, d.Joins)
		}
		if d.Interface != "wifi" {
			s.Errorf("interface is %q", d.Interface)
		}
		s.clean("d")
	})
}

// TestInterfaceInHello: it counts like one published by itself.
func TestInterfaceInHello(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		s.joined("d")
		for _, name := range []string{"ethernet", "cellular"} {
			s.hello("d", uuid10, "1.0.0", `,"interface":"`+name+`"`)
			s.until("d", name, func(d hubtest.DeviceState) bool { return d.Interface == name })
		}
	})
}

// TestScriptsRefused: whoever runs a script is answered at once.
func TestScriptsRefused(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		s.joined("d")
		begun := time.Now()
		out, err := s.hub.RunScript(context.Background(), "d", "1 + 1")
		if err != nil || !strings.Contains(out, "no scripts") || time.Since(begun) > time.Second {
			s.Errorf("%q %v after %s", out, err, time.Since(begun))
		}
	})
}

// TestPacketTooSmall: what does not fit is said, not sent.
func TestPacketTooSmall(t *testing.T) {
	inBubble(t, []string{"d"}, func(s *site) {
		s.joined("d")
		s.hello("d", uuid10, "1.0.0", `,"packet":128`)
		s.offered("d")
		got := s.bus.published("d", "error")
		if len(got) != 1 || !strings.Contains(got[0], `"packet_too_small"`) {
			s.Errorf("got %q", got)
		}
	})
}

// TestFull: a device too many is turned away and counted; the others live on.
func TestFull(t *testing.T) {
	f := bridge.New(bridge.Config{Devices: 2, Log: slog.New(slog.DiscardHandler)}, &ledger{})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); f.Run(ctx) }()
	for i := range 5 { // two, and two that could be lingering
		f.Online(fmt.Sprint("x", i), mqtt.Client{})
	}
	if err := f.Received("x4", "hello", []byte("1.0.0")); !errors.Is(err, mqtt.ErrBusy) {
		t.Error("the fifth was taken: ", err)
	}
	if n := f.Counters().Dropped["fleet_full"]; n != 2 {
		t.Errorf("%d counted, want 2", n)
	}
	stop()
	<-done
	if err := f.Received("x1", "hello", []byte("1.0.0")); err == nil {
		t.Error("a publish was acknowledged after the end")
	}
}
