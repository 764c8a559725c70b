package mqtt_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/mqtt"
)

// One device that publishes faster than it is heard costs its own messages and
// nobody else's: the connection, which is everybody's, stays.
func TestExternalFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		var log bytes.Buffer
		c := s.config()
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
		heard := 0
		r := &recorder{}
		r.refuse = func(device, _ string, _ []byte) error {
			if heard++; device == "flood" && heard%3 != 0 {
				return fmt.Errorf("inbox of %s: %w", device, mqtt.ErrBusy)
			}
			return nil
		}
		g := run(t, external(t, c), r)
		g.up(t)
		const n = 300
		for i := range n {
			s.publish("nh/flood/up/status", fmt.Sprint(i), false)
			if i%10 == 0 {
				s.publish("nh/good/up/status", fmt.Sprint(i/10), false)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		var good []string
		taken, declined, refused := 0, 0, 0
		for _, e := range r.all() {
			switch {
			case strings.HasPrefix(e, "received good"):
				good = append(good, e)
			case strings.HasPrefix(e, "received flood"):
				taken++
			case strings.HasPrefix(e, "declined flood"):
				declined++
			case e == "refused flood status: "+mqtt.ErrBusy.Error():
				refused++
			}
		}
		for i := range n / 10 {
			if want := fmt.Sprint("received good status ", i); i >= len(good) || good[i] != want {
				t.Fatalf("the neighbour's messages: %q, want %q at %d", good, want, i)
			}
		}
		if len(good) != n/10 || taken+declined != n || declined == 0 || taken == 0 || refused != declined {
			t.Errorf("%d of the neighbour; of the flood %d taken, %d declined, %d refused", len(good), taken, declined, refused)
		}
		h := g.Health()
		if h.Err != nil || h.Dropped["busy"] != uint64(refused) || len(h.Dropped) != 1 {
			t.Errorf("health %+v, want %d busy", h, refused)
		}
		if n := strings.Count(log.String(), "connected to the broker"); n != 1 {
			t.Errorf("connected %d times", n)
		}
		cl, _ := s.broker().Clients.Get("ganglion-site7")
		if n := cl.State.Inflight.Len(); n != 0 {
			t.Errorf("%d messages unacknowledged", n)
		}
		if slices.Contains(r.all(), "offline flood") {
			t.Error("the device went offline")
		}
		g.stop(t)
		s.stop()
	})
}
