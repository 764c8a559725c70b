package bridge

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestParseStatus(t *testing.T) {
	tests := []struct {
		in     string
		word   word
		reason string
		delay  time.Duration
		code   code
	}{
		{"received", received, "", -1, ""},
		{" started \n", started, "", -1, ""},
		{"failed bad flash", failed, "bad flash", -1, ""},
		{"failed", failed, "", -1, ""},
		{"ignored not now", ignored, "not now", -1, ""},
		{"completed", completed, "", -1, ""},
		{"fwup_complete", completed, "", -1, ""},
		{"fwup_error boom", failed, "boom", -1, ""},
		{"update_failed", failed, "", -1, ""},
		{"idle", none, "", -1, ""},
		{"unknown", none, "", -1, ""},
		{"rescheduled", rescheduled, "", -1, ""},
		{"rescheduled 3600000 night shift", rescheduled, "night shift", time.Hour, ""},
		{"rescheduled night shift", rescheduled, "night shift", -1, ""},
		{"reschedule 5000", rescheduled, "", 5 * time.Second, ""},
		{"rescheduled -5", rescheduled, "", 0, ""},
		{"rescheduled 1e300", rescheduled, "", maxDelay, ""},
		{`{"status":"failed","reason":"bad flash"}`, failed, "bad flash", -1, ""},
		{`{"state":"failed","reason":"bad\u0000flash"}`, failed, "bad flash", -1, ""},
		{`{"status":"rescheduled","delay_for":1500.9,"extra":[1]}`, rescheduled, "", 1500 * time.Millisecond, ""},
		{`{"status":"update_rescheduled","reason":"busy"}`, rescheduled, "busy", -1, ""},
		{`{"status":"rescheduled","delay_for":"soon"}`, none, "", -1, codeBadPayload},
		{`{"status":"failed","reason":5}`, none, "", -1, codeBadPayload},
		{`{"status":null}`, none, "", -1, codeBadPayload},
		{`{"status":"failed"`, none, "", -1, codeBadPayload},
		{`["failed"]`, none, "", -1, codeUnknownStatus},
		{"verifying", none, "", -1, codeUnknownStatus},
		{"Failed", none, "", -1, codeUnknownStatus},
		{"", none, "", -1, codeUnknownStatus},
	}
	for _, tt := range tests {
		r, no := parseStatus([]byte(tt.in))
		switch {
		case tt.code != "":
			if no == nil || no.code != tt.code || no.reason == "" {
				t.Errorf("%q: %v, want %s with a reason", tt.in, no, tt.code)
			}
		case no != nil || r.word != tt.word || r.reason != tt.reason || r.delay != tt.delay:
			t.Errorf("%q: %+v %v, want %s %q %s", tt.in, r, no, tt.word, tt.reason, tt.delay)
		}
	}
}

func TestParseProgress(t *testing.T) {
	tests := []struct {
		in    string
		value int
		stage word
		code  code
	}{
		{"42", 42, updating, ""},
		{" 42 ", 42, updating, ""},
		{"42.99", 42, updating, ""},
		{"0", 0, updating, ""},
		{"-1", 0, updating, ""},
		{"101", 100, updating, ""},
		{"1e400", 100, updating, ""},
		{"-1e400", 0, updating, ""},
		{`{"value":42}`, 42, updating, ""},
		{`{"value":42.5,"stage":"downloading"}`, 42, downloading, ""},
		{`{"value":42,"stage":null}`, 42, updating, ""},
		{`{"value":1,"value":2}`, 2, updating, ""},
		{"NaN", 0, none, codeBadPayload},
		{"0x10", 0, none, codeBadPayload},
		{"+5", 0, none, codeBadPayload},
		{".5", 0, none, codeBadPayload},
		{"1_0", 0, none, codeBadPayload},
		{"Inf", 0, none, codeBadPayload},
		{"", 0, none, codeBadPayload},
		{"fifty", 0, none, codeBadPayload},
		{`"50"`, 0, none, codeBadPayload},
		{"[50]", 0, none, codeBadPayload},
		{"null", 0, none, codeBadPayload},
		{`{"value":"50"}`, 0, none, codeBadPayload},
		{`{"value":null}`, 0, none, codeBadPayload},
		{`{"stage":"updating"}`, 0, none, codeBadPayload},
		{`{"value":1,"stage":"verifying"}`, 0, none, codeUnknownStatus},
		{`{"value":1,"stage":"failed"}`, 0, none, codeUnknownStatus},
		{`{"value":1,"stage":7}`, 0, none, codeBadPayload},
	}
	for _, tt := range tests {
		r, no := parseProgress([]byte(tt.in))
		switch {
		case tt.code != "":
			if no == nil || no.code != tt.code || no.reason == "" {
				t.Errorf("%q: %v, want %s with a reason", tt.in, no, tt.code)
			}
		case no != nil || r.value != tt.value || r.word != tt.stage:
			t.Errorf("%q: %+v %v, want %d %s", tt.in, r, no, tt.value, tt.stage)
		}
	}
}

func TestParseInterface(t *testing.T) {
	tests := []struct{ in, name, types string }{
		{"wifi", "wlan0", "wifi"},
		{"ethernet", "eth0", "ethernet"},
		{"cellular", "wwan0", "cellular"},
		{"ppp0", "ppp0", ""},
		{`{"interface":"wifi"}`, "wlan0", "wifi"},
		{`{"interface":"wifi","types":["wifi","cellular"]}`, "wlan0", "wifi cellular"},
		{`{"interface":"wifi","types":[]}`, "wlan0", ""},
		{`{"interface":null}`, "", ""},
		{`{"interface":"wifi","types":"wifi"}`, "", ""},
		{`{"interface":"wifi","types":[1]}`, "", ""},
		{`{"interface":"wifi","types":["","",""]}`, "", ""},
		{"", "", ""},
		{"a\x00b", "", ""},
		{strings.Repeat("x", 300), "", ""},
	}
	for _, tt := range tests {
		i, no := parseInterface([]byte(tt.in))
		if bad := no != nil; bad != (tt.name == "") || i.Name != tt.name || strings.Join(i.Types, " ") != tt.types {
			t.Errorf("%q: %+v %v, want %q %q", tt.in, i, no, tt.name, tt.types)
		}
	}
}

// FuzzForms: whatever a device publishes as progress, status or interface is
// refused by name or comes out such that NervesHub cannot crash on it.
func FuzzForms(f *testing.F) {
	for _, s := range []string{"42", "failed bad flash", "rescheduled 3600000 night shift", `{"value":42,"stage":"updating"}`,
		`{"status":"failed","reason":"x"}`, `{"state":"idle"}`, "wifi", `{"interface":"wifi","types":["wifi"]}`, "1e999", "\xff", `{"value":1.5e400}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, no := parseStatus(b); no == nil {
			if !plain(r.reason) || r.delay > maxDelay || r.value > 100 {
				t.Errorf("status %q: %+v", b, r)
			}
			u := newUpdate(offer{}, nil, time.Unix(0, 0))
			u.report(r)
			judge(t, u.due(time.Unix(1, 0)))
		} else if no.code == "" || !utf8.ValidString(no.reason) {
			t.Errorf("status %q: %+v", b, no)
		}
		if r, no := parseProgress(b); no == nil {
			if r.value < 0 || r.value > 100 || r.word != downloading && r.word != updating {
				t.Errorf("progress %q: %+v", b, r)
			}
			u := newUpdate(offer{}, nil, time.Unix(0, 0))
			u.report(r)
			judge(t, u.due(time.Unix(1, 0)))
		}
		if i, no := parseInterface(b); no == nil && (i.Name == "" || !plain(i.Name)) {
			t.Errorf("interface %q: %+v", b, i)
		}
	})
}

// judge fails the test on a statement that would crash NervesHub's channel.
func judge(t *testing.T, statements []statement) {
	t.Helper()
	for _, s := range statements {
		var p map[string]any
		d := json.NewDecoder(strings.NewReader(string(s.payload)))
		d.UseNumber()
		if err := d.Decode(&p); err != nil {
			t.Fatalf("%s %s: %v", s.event, s.payload, err)
		}
		for _, key := range []string{"value", "progress", "delay_for"} {
			if n, ok := p[key]; ok {
				if n, ok := n.(json.Number); !ok || strings.ContainsAny(string(n), ".eE") {
					t.Errorf("%s is no integer: %s", key, s.payload)
				}
			}
		}
		for _, key := range []string{"status", "stage"} {
			if w, ok := p[key]; ok {
				if s2, _ := w.(string); spoken[s2] == none {
					t.Errorf("%s is no status: %s", key, s.payload)
				}
			}
		}
		if r, ok := p["reason"]; ok {
			if _, ok := r.(string); !ok {
				t.Errorf("reason is no text: %s", s.payload)
			}
		}
		if _, ok := p["status"]; s.event == "status_update" && !ok {
			t.Errorf("status is missing: %s", s.payload)
		}
	}
}
