package hubtest

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs a test in a synctest bubble with a hub in it; a goroutine left
// behind fails it.
func bubble(t *testing.T, c Config, f func(t *testing.T, w *world)) {
	t.Helper()
	keys() // made outside, with real time
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, c)
		defer w.end()
		f(t, w)
	})
}

func TestUpdate(t *testing.T) {
	bubble(t, Config{ScheduleEvery: 20 * time.Millisecond}, func(t *testing.T, w *world) {
		w.addLab()
		w.SetRelease(uuid110)
		c := w.dial("a")
		c.send(joinFrame(1, uuid100, "1.0.0", ""))
		c.want(`["1","1","device","phx_reply",{"response":{},"status":"ok"}]`)
		c.event("update")
		time.Sleep(500 * time.Millisecond)
		c.send(`["1","2","device","status_update",{"status":"received"}]`)
		c.send(`["1","3","device","fwup_progress",{"value":40,"stage":"updating"}]`)
		err := w.Wait(context.Background(), "a", func(s DeviceState) bool { return s.Inflight != nil && s.Inflight.Progress == 40 })
		if err != nil {
			t.Fatal(err)
		}
		c.send(joinFrame(4, uuid110, "1.1.0", ""))
		w.Wait(context.Background(), "a", func(s DeviceState) bool { return s.Joins == 2 })
		s, _ := w.Device("a")
		if s.Successes != 1 || s.Inflight != nil || len(s.Attempts) != 0 || s.Metadata.Version != "1.1.0" || s.GroupUpdates != 1 {
			t.Errorf("after the update: %+v", s)
		}
		c.hangUp()
	})
}
