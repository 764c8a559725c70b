package mqtt

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func newTestMailbox() *mailbox {
	return &mailbox{retained: map[string]letter{}, shared: map[string]letter{}, lost: new(tally), window: maxUnacked}
}

// The mailbox as a whole is tested over the wire; here is what time and a full
// queue do to it.
func TestMailboxMakesRoom(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := newTestMailbox()
	for i := range maxQueued {
		l := letter{topic: fmt.Sprint("a/", i%2), qos: 1}
		if i < 10 {
			l.expires = now.Add(time.Second)
		}
		if err := b.push(l, now); err != nil {
			t.Fatal(err)
		}
	}
	more := letter{topic: "a/0", qos: 1}
	if err := b.push(more, now); !errors.Is(err, ErrQueueFull) {
		t.Fatalf("65th letter: %v", err)
	}
	now = now.Add(time.Second) // ten expire
	if err := b.push(more, now); err != nil {
		t.Fatal(err)
	}
	if n := b.commands(); n != maxQueued-10+1 {
		t.Fatalf("%d queued", n)
	}
	b.subscribe(subscription{filter: "a/0", qos: 1}, true, now)
	for b.push(more, now) == nil { // until it is full of what the device wants
	}
	for _, l := range b.queue {
		if l.topic != "a/0" {
			t.Fatalf("kept %s, which a full queue has no room for", l.topic)
		}
	}
	if n := b.lost.all(); n["expired"] != 10 || n["unsubscribed"] != 27 {
		t.Fatalf("lost %v", n)
	}
}

func TestMailboxPacketIDs(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := newTestMailbox()
	b.subscribe(subscription{filter: "#", qos: 1}, false, now)
	b.lastID = 65530
	seen := map[uint16]bool{}
	for i := range maxUnacked {
		_ = b.push(letter{topic: "a", qos: 1}, now)
		l, ok := b.next(now)
		if !ok || l.id == 0 || seen[l.id] {
			t.Fatalf("letter %d: id %d, ok %v", i, l.id, ok)
		}
		seen[l.id] = true
	}
	_ = b.push(letter{topic: "a", qos: 1}, now)
	if _, ok := b.next(now); ok {
		t.Fatal("sent beyond the window")
	}
	b.ack(9999)
	b.ack(3)
	b.lastID = 65530 // round once more: every other id is taken
	if l, ok := b.next(now); !ok || seen[l.id] && l.id != 3 {
		t.Fatalf("id %d, ok %v", l.id, ok)
	}
}

// Retained state may expire, too.
func TestMailboxStateExpires(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := newTestMailbox()
	b.window = 1
	b.subscribe(subscription{filter: "#", qos: 1}, false, now)
	for _, topic := range []string{"x", "y"} {
		l := letter{topic: topic, payload: []byte("1"), qos: 1, state: true, expires: now.Add(time.Second)}
		_ = store(b.retained, l)
		_ = b.push(l, now)
	}
	first, _ := b.next(now)
	now = now.Add(2 * time.Second)
	b.ack(first.id)
	if l, ok := b.next(now); ok {
		t.Fatalf("sent %s after it expired", l.topic)
	}
	b.subscribe(subscription{filter: "+", qos: 1}, true, now)
	if l, ok := b.next(now); ok || len(b.retained) != 0 {
		t.Fatalf("sent %s, %d still retained", l.topic, len(b.retained))
	}
}

func TestTopicsUp(t *testing.T) {
	long := strings.Repeat("d", maxID)
	for _, one := range []struct {
		prefix, topic, device, name string
	}{
		{"nh", "nh/d/up/hello", "d", "hello"},
		{"nh", "nh/d/up/console/size", "d", "console/size"},
		{"site/a", "site/a/d/up/hello", "d", "hello"},
		{"nh", "nh/" + long + "/up/hello", long, "hello"},
		{"nh", "nh/" + long + "d/up/hello", "", ""},
		{"nh", "nh/d/up/", "", ""},
		{"nh", "nh/d/up", "", ""},
		{"nh", "nh/d/down/update", "", ""},
		{"nh", "nh/d/x/up/hello", "", ""},
		{"nh", "nh//up/hello", "", ""},
		{"nh", "nh/gateway/up/hello", "", ""},
		{"nh", "nhx/d/up/hello", "", ""},
		{"nh", "/nh/d/up/hello", "", ""},
		{"nh", "", "", ""},
		{"nh", "nh/.d/up/hello", "", ""},
	} {
		device, name, ok := Topics{one.prefix}.Up(one.topic)
		if device != one.device || name != one.name || ok != (one.device != "") {
			t.Errorf("%s: %q %q %v", one.topic, device, name, ok)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, one := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/bc", false}, {"a/b", "a", false}, {"a", "a/b", false},
		{"#", "a/b", true}, {"a/#", "a", true}, {"a/#", "a/", true}, {"a/#", "ab", false}, {"a/#", "a/b/c", true},
		{"+", "a", true}, {"+", "a/b", false}, {"+/b", "a/b", true}, {"a/+", "a", false}, {"a/+", "a/", true},
		{"+/+", "/a", true}, {"/+", "/a", true}, {"a/+/c", "a//c", true}, {"a/+/#", "a/b", true}, {"a/b/#", "a", false},
		{"#", "$SYS/a", false}, {"+/a", "$SYS/a", false}, {"$SYS/#", "$SYS/a", true},
	} {
		if got := matches(one.filter, one.topic); got != one.want {
			t.Errorf("%s on %s: %v", one.filter, one.topic, got)
		}
	}
}

func FuzzValidID(f *testing.F) {
	for _, s := range []string{"soil-1", "gateway", "", "..", "a/b", "+", "#", "$SYS", "a\x00", "ü", strings.Repeat("a", 65), "A.b_c-9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if !ValidID(id) {
			return
		}
		if len(id) > maxID || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" || strings.ContainsAny(id[:1], "._-") {
			t.Fatalf("%q", id)
		}
		topics := Topics{"nh"}
		for _, m := range []Message{{Device: id, Name: "reboot"}, {Device: id, Name: "console/size"}} {
			if !validTopic(topics.Of(m)) || !topics.mayRead(id, topics.Of(m)) || topics.mayWrite(id, topics.Of(m)) {
				t.Fatalf("%q may not read %s", id, topics.Of(m))
			}
		}
		if device, name, ok := topics.Up("nh/" + id + "/up/a/b"); !ok || device != id || name != "a/b" {
			t.Fatalf("%q: %q %q %v", id, device, name, ok)
		}
	})
}

// No filter that a device may subscribe to covers a topic that is not its own,
// and none it may publish to is another's.
func FuzzTopics(f *testing.F) {
	for _, s := range []string{
		"nh/d/down/#", "nh/d/down/+", "nh/+/down/#", "nh/#", "#", "+", "nh/gateway", "$share/g/nh/d/down/#", "nh/d/down/a#",
		"nh/d/down/a+/b", "nh/d/down/", "nh/d/down", "nh/d/up/status", "nh/e/up/status", "nh/d/up/+", "nh/d/../e/down/#", "\x00", "nh/d/down/\xff",
	} {
		f.Add(s)
	}
	foreign := []string{"nh/e/down/update", "nh/e/up/status", "nh/d/up/status", "nh/d", "nh", "nh/dd/down/a", "nh/gateway/x", "$SYS/broker", "/nh/d/down/a"}
	f.Fuzz(func(t *testing.T, s string) {
		topics := Topics{"nh"}
		if topics.mayRead("d", s) {
			for _, topic := range foreign {
				if matches(s, topic) {
					t.Fatalf("filter %q covers %s", s, topic)
				}
			}
			for i, level := range strings.Split(s, "/") {
				if strings.ContainsAny(level, "+#") && (len(level) != 1 || i < 3) || level == "#" && !strings.HasSuffix(s, "/#") {
					t.Fatalf("filter %q", s)
				}
			}
		}
		if topics.mayWrite("d", s) && (!strings.HasPrefix(s, "nh/d/up/") || strings.ContainsAny(s, "+#\x00")) {
			t.Fatalf("topic %q", s)
		}
		if validTopic(s) && (!validFilter(s) || !matches(s, s) && s[0] != '$') {
			t.Fatalf("topic %q does not match itself", s)
		}
	})
}
