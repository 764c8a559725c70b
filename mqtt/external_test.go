package mqtt_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/mqtt"
)

func TestExternalConfig(t *testing.T) {
	good := mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, ClientID: "g"}
	for _, tt := range []struct {
		url, want string // want "": fine
		edit      func(*mqtt.ExternalConfig)
	}{
		{url: "mqtt://broker"}, {url: "mqtts://broker:1"}, {url: "mqtt://[::1]"},
		{url: "", want: "url: scheme"},
		{url: "http://b", want: `url: scheme must be mqtt or mqtts (got "http")`},
		{url: "broker:1883", want: "url: scheme"},
		{url: "mqtt://", want: "url: host missing"},
		{url: "mqtt://me:s3cret@b", want: "url: must hold no credentials"},
		{url: "mqtt://me:s3cret@b:x", want: "url: not a URL"},
		{url: "mqtt://b", want: "client_id: missing", edit: func(c *mqtt.ExternalConfig) { c.ClientID = "" }},
		{url: "mqtt://b", want: "username: missing", edit: func(c *mqtt.ExternalConfig) { c.Password = "s3cret" }},
		{url: "mqtt://b", want: "prefix:", edit: func(c *mqtt.ExternalConfig) { c.Prefix = "" }},
		{url: "mqtt://b", want: "prefix:", edit: func(c *mqtt.ExternalConfig) { c.Prefix = "a/#" }},
		{url: "mqtt://b", want: "will:", edit: func(c *mqtt.ExternalConfig) { c.Will.Device = "d1" }},
	} {
		c := good
		c.URL = tt.url
		if tt.edit != nil {
			tt.edit(&c)
		}
		_, err := mqtt.NewExternal(c)
		switch {
		case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%q: got %v, want %q", tt.url, err, tt.want)
		case err != nil && strings.Contains(err.Error(), "s3cret"):
			t.Errorf("%q: the error tells the password: %v", tt.url, err)
		}
	}
}

func TestExternalPresence(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, g *gateway, r *recorder) {
		s.publish("nh/d1/up/online", "1", true)
		s.publish("nh/d1/up/hello", "1.4.0", false)
		s.publish("nh/d1/up/online", "1", true) // connected again
		s.publish("nh/d1/up/online", "0", true)
		s.publish("nh/d1/up/online", "0", true) // gone already
		s.publish("nh/d2/up/hello", "1.4.0", false)
		s.publish("nh/d2/up/online", "yes", false)
		s.publish("nh/d2/up/online", "", true) // somebody clears it
		s.publish("nh/-bad/up/hello", "x", false)
		s.publish("nh/gateway/up/hello", "x", false)
		s.publish("nh/d3/up", "x", false)
		r.want(t,
			"online d1", "received d1 hello 1.4.0", "online d1", "offline d1",
			"online d2", "received d2 hello 1.4.0", "refused d2 online: "+mqtt.ErrPresence.Error(), "offline d2")
		h := g.Health()
		if h.Devices != 0 || h.Dropped["bad_topic"] != 3 || h.Dropped["bad_presence"] != 1 {
			t.Errorf("health: %+v", h)
		}
	})
}

// A retained publish shows itself at the next SUBSCRIBE only, and then its
// clearing comes back to us as an empty message, which no device has sent.
func TestExternalRetained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newSite(t), new(recorder)
		s.publish("nh/d1/up/online", "1", true)
		s.publish("nh/d1/up/validated", "stale", true)
		s.publish("nh/d2/up/status", strings.Repeat("s", 300<<10), true)
		g := run(t, external(t, s.config()), r)
		g.up(t)
		synctest.Wait()
		s.publish("nh/d1/up/validated", "", false)
		got := r.all()
		slices.Sort(got) // retained messages come in any order
		want := []string{"online d1", "received d1 validated ", "refused d1 validated: mqtt: retained publish", "refused d2 status: mqtt: retained publish"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		for _, topic := range []string{"nh/d1/up/validated", "nh/d2/up/status"} {
			if payload, ok := s.retained(topic); ok {
				t.Errorf("%s still says %.20q", topic, payload)
			}
		}
		if payload, _ := s.retained("nh/d1/up/online"); payload != "1" {
			t.Errorf("up/online is %q", payload)
		}
		g.stop(t)
		s.stop()
	})
}

// What cannot be held is refused by name and acknowledged, or one device could
// keep the gateway from the broker.
func TestExternalLargeMessage(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, g *gateway, r *recorder) {
		s.publish("nh/d1/up/log", "before", false)
		s.publish("nh/d1/up/log", strings.Repeat("x", 2<<20), false)
		s.publish("nh/d1/up/log", "after", false)
		r.want(t, "online d1", "received d1 log before", "refused d1 log: mqtt: message too large", "received d1 log after")
		if err := g.Health().Err; err != nil {
			t.Error(err)
		}
		cl, _ := s.broker().Clients.Get("ganglion-site7")
		if n := cl.State.Inflight.Len(); n != 0 {
			t.Errorf("%d messages unacknowledged", n)
		}
	})
}

// What is said about gateways is heard as it is, once per connection, and then
// as it is said; never what was said to an absent one.
func TestExternalGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		said := new(recorder)
		c := s.config()
		c.OnGateway = func(payload []byte, live bool) { said.note("%s %t", payload, live) }
		want := func(want ...string) {
			t.Helper()
			said.want(t, want...)
			said.mu.Lock()
			defer said.mu.Unlock()
			said.events = nil
		}
		g := run(t, external(t, c), new(recorder))
		g.up(t)
		want()
		time.Sleep(2 * time.Second)
		want(" false")
		if err := g.Publish(mqtt.Message{Name: "gateway", Payload: []byte("me"), Retain: true}); err != nil {
			t.Error(err)
		}
		want("me true")
		s.net().Drop() // and the will is published
		within(t, time.Second, "loss noticed", func() bool { return g.Health().Err != nil })
		if err := g.Publish(mqtt.Message{Name: "gateway", Payload: []byte("me"), Retain: true}); !errors.Is(err, mqtt.ErrOffline) {
			t.Errorf("a word for another connection: %v", err)
		}
		g.up(t)
		want("offline false")
		g.stop(t)
		s.publish("nh/gateway", "other online", true)
		s.publish("nh/gateway", "other offline", true)
		g = run(t, external(t, c), new(recorder))
		g.up(t)
		time.Sleep(2 * time.Second)
		want("other offline false")
		g.stop(t)
		s.stop()
	})
}
