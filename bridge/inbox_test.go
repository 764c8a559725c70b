package bridge

import (
	"errors"
	"fmt"
	"testing"

	"ganglion/mqtt"
)

// TestInbox: what gives way when a device publishes faster than it is heard.
func TestInbox(t *testing.T) {
	b := newInbox()
	publish := func(name, payload string) (string, error) {
		return b.put(input{kind: published, name: name, payload: []byte(payload)})
	}
	for i := range 1000 {
		lost, err := publish("progress", fmt.Sprint(i))
		if err != nil || (lost == "coalesced") != (i > 0) {
			t.Fatalf("progress %d: %q %v", i, lost, err)
		}
	}
	for i := 1; i < maxWaiting; i++ {
		if lost, err := publish("status", fmt.Sprint("failed ", i)); lost != "" || err != nil {
			t.Fatalf("status %d: %q %v", i, lost, err)
		}
	}
	if _, err := publish("status", "failed"); !errors.Is(err, mqtt.ErrBusy) {
		t.Errorf("a durable publish that does not fit was acknowledged: %v", err)
	}
	if lost, err := publish("rebooting", ""); lost != "inbox_full" || err != nil {
		t.Errorf("rebooting: %q %v", lost, err)
	}
	if lost, err := publish("nonsense", ""); lost != "inbox_full" || err != nil {
		t.Errorf("nonsense: %q %v", lost, err)
	}
	if lost, err := publish("progress", "1000"); lost != "coalesced" || err != nil {
		t.Errorf("the newest progress: %q %v", lost, err)
	}
	for range 100 {
		b.put(input{kind: offline})
		b.put(input{kind: online, client: mqtt.Client{Version: 5}})
	}
	got := b.take()
	if len(got) != maxWaiting+1 {
		t.Fatalf("%d are waiting, want %d", len(got), maxWaiting+1)
	}
	if got[0].name != "progress" || string(got[0].payload) != "1000" {
		t.Errorf("first is %s %s, want the newest progress", got[0].name, got[0].payload)
	}
	for i := 1; i < maxWaiting; i++ {
		if want := fmt.Sprint("failed ", i); string(got[i].payload) != want {
			t.Fatalf("at %d: %s, want %s", i, got[i].payload, want)
		}
	}
	if last := got[maxWaiting]; last.kind != online || last.client.Version != 5 {
		t.Errorf("last is %+v, want the newest presence", last)
	}
	if !b.empty() {
		t.Error("not empty after take")
	}
}
