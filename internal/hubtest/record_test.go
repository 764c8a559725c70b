package hubtest

import (
	"encoding/json"
	"errors"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// offered is a record with an update that was pushed a second before noon.
func offered() *record {
	r := newRecord("a", 1)
	r.meta, r.grouped = on100, true
	r.offer(noon.Add(-time.Second), uuid110, 1)
	return &r
}

func TestStatus(t *testing.T) {
	g := newGroup(Group{})
	for _, test := range []struct {
		event, payload string
		crash          crash
		status         string // of the row; "" if there is none
		attempts       int
		blocked        time.Duration
	}{
		{"status_update", `{"status":"received"}`, "", "received", 1, 0},
		{"status_update", `{"status":"downloading","progress":7}`, "", "downloading", 1, 0},
		{"status_update", `{"status":"downloading","progress":7.5}`, "progress is not an integer", "requested", 0, 0},
		{"status_update", `{"status":"failed"}`, "", "", 1, 24 * time.Hour},
		{"status_update", `{"status":"failed","reason":null}`, "", "", 1, 24 * time.Hour},
		{"status_update", `{"status":"failed","reason":5}`, "reason is not a string", "requested", 0, 0},
		{"status_update", `{"status":"FWUP Error: no space"}`, "", "", 1, 24 * time.Hour},
		{"status_update", `{"status":"rescheduled"}`, "", "rescheduled", 1, 0},
		{"status_update", `{"status":"rescheduled","delay_for":60000}`, "", "", 1, time.Minute},
		{"status_update", `{"status":"rescheduled","delay_for":6e4}`, "delay_for is not an integer", "requested", 0, 0},
		{"status_update", `{"status":"rescheduled","delay_for":"60000"}`, "delay_for is not an integer", "requested", 0, 0},
		{"status_update", `{"status":"idle"}`, `unknown status "idle"`, "requested", 0, 0},
		{"status_update", `{"status":1}`, "status_update without a string status", "requested", 0, 0},
		{"status_update", `[]`, "status_update without a string status", "requested", 0, 0},
		{"fwup_progress", `{"value":42}`, "", "updating", 1, 0},
		{"fwup_progress", `{"value":"42"}`, "", "updating", 1, 0},
		{"fwup_progress", `{"value":"x"}`, "progress is not a number", "requested", 0, 0},
		{"fwup_progress", `{"value":{}}`, "progress is not a number", "requested", 0, 0},
		{"fwup_progress", `{"value":42.0}`, "progress is not an integer", "requested", 0, 0},
		{"fwup_progress", `{"value":100}`, "", "completed", 1, 0},
		{"fwup_progress", `{"value":100,"stage":"downloading"}`, "", "downloading", 1, 0},
		{"fwup_progress", `{"value":1,"stage":"verifying"}`, "unknown stage verifying", "requested", 0, 0},
		{"fwup_progress", `{"stage":"updating"}`, "", "requested", 0, 0},
	} {
		r := offered()
		c := r.handle(noon, test.event, test.payload, &g)
		status := ""
		if r.inflight != nil {
			status = r.inflight.Status
		}
		blocked := time.Duration(0)
		if !r.blockedUntil.IsZero() {
			blocked = r.blockedUntil.Sub(noon)
		}
		if c != test.crash || status != test.status || len(r.attempts) != test.attempts || blocked != test.blocked {
			t.Errorf("%s %s: crash %q, row %q, %d attempts, blocked %v", test.event, test.payload, c, status, len(r.attempts), blocked)
		}
	}
}

func (r *record) handle(now time.Time, event, payload string, g *group) crash {
	if event == "status_update" {
		return r.status(now, json.RawMessage(payload), g)
	}
	return r.progress(now, json.RawMessage(payload))
}

// A float is noticed only when progress is stored, which is once in 15 s while
// the status stays the same; and an unchanged value never counts as a change.
func TestProgressIsStoredNowAndThen(t *testing.T) {
	r := offered()
	for _, step := range []struct {
		after   time.Duration
		value   string
		crash   bool
		stored  int
		updated time.Duration
	}{
		{0, "1", false, 1, 0},
		{5 * time.Second, "2", false, 1, 0},
		{5 * time.Second, "2.5", false, 1, 0},
		{15 * time.Second, "3", false, 3, 15 * time.Second},
		{31 * time.Second, "3", false, 3, 15 * time.Second},
		{32 * time.Second, "3.5", true, 3, 15 * time.Second},
	} {
		c := r.progress(noon.Add(step.after), json.RawMessage(`{"value":`+step.value+`,"stage":"updating"}`))
		if (c != "") != step.crash || r.inflight.Progress != step.stored || r.inflight.UpdatedAt.Sub(noon) != step.updated {
			t.Errorf("%s after %v: crash %q, row %+v", step.value, step.after, c, *r.inflight)
		}
	}
}

func TestAttemptsInTheWindowPark(t *testing.T) {
	g := newGroup(Group{FailureThreshold: 100, FailureRateAmount: 2})
	r := newRecord("a", 1)
	r.attempts = []time.Time{noon.Add(-200 * time.Second), noon.Add(-100 * time.Second)}
	if r.park(noon, &g) {
		t.Error("parked for an attempt outside the window")
	}
	r.attempts = append(r.attempts, noon)
	if !r.park(noon, &g) || r.ineligible(noon, &g) == "" {
		t.Error("not parked")
	}
}

func TestParseJoin(t *testing.T) {
	for _, test := range []struct {
		payload string
		err     error
		api     string
		meta    Metadata
	}{
		{`{}`, nil, "1.0.0", Metadata{}},
		{`[]`, errJoinCrashed, "1.0.0", Metadata{}},
		{`{"device_api_version":2}`, errJoinCrashed, "1.0.0", Metadata{}},
		{`{"device_api_version":"2"}`, nil, "1.0.0", Metadata{}},
		{`{"device_api_version":"2.3.0"}`, nil, "2.3.0", Metadata{}},
		{`{"meta":[]}`, errJoinCrashed, "1.0.0", Metadata{}},
		{`{"meta":{"firmware_validated":"yes"}}`, errJoinCrashed, "1.0.0", Metadata{}},
		{`{"meta":{"firmware_auto_revert_detected":1}}`, errCouldNotEnter, "1.0.0", Metadata{}},
		{`{"update_tool":"esp-idf","esp_idf_chip_id":5.0}`, errJoinCrashed, "1.0.0", Metadata{}},
		{`{"esp_idf_project_name":"p","esp_idf_version":"v1.2","esp_idf_chip_id":"13","esp_idf_app_elf_sha256":"5A0C1F223344556677889900AABBCCDD"}`, nil, "1.0.0",
			Metadata{UUID: "5a0c1f22-3344-5566-7788-9900aabbccdd", Product: "p", Version: "1.2.0", Platform: "esp32c6", Architecture: "riscv"}},
		{`{"nerves_fw_uuid":"u","nerves_fw_version":1}`, nil, "1.0.0", Metadata{UUID: "u"}},
	} {
		p, err := parseJoin(json.RawMessage(test.payload))
		if !errors.Is(err, test.err) || p.apiText != test.api || err == nil && p.meta != test.meta {
			t.Errorf("%s: %v, %+v", test.payload, err, p)
		}
	}
}

func TestSemver(t *testing.T) {
	for _, test := range []struct {
		version, requirement string
		want                 bool
	}{
		{"1.2.0", ">= 1.2.0 and < 2.0.0", true},
		{"2.0.0", ">= 1.2.0 and < 2.0.0", false},
		{"1.2.0-rc.1", ">= 1.2.0", false},
		{"1.2.0", "1.2.0", true},
		{"1.2.0", "!= 1.2.0", false},
		{"1.2.1", "> 1.2.0", true},
		{"1.2.0", "<= 1.2.0", true},
		{"1.2.0", "about 1.2.0", false},
	} {
		v, ok := parseSemver(test.version)
		if !ok || v.satisfies(test.requirement) != test.want {
			t.Errorf("%s %s: not %v", test.version, test.requirement, test.want)
		}
	}
	for _, text := range []string{"", "1", "1.2", "v1.2.3", "01.2.3", "build-17"} {
		if _, ok := parseSemver(text); ok {
			t.Errorf("%q taken for a version", text)
		}
	}
}

// Whatever a device sends is an error or a frame that survives a round trip,
// and nothing it says makes the record panic.
func FuzzFrame(f *testing.F) {
	for _, seed := range []string{
		joinFrame(1, uuid110, "1.1.0", ""),
		`["1","2","device","status_update",{"status":"rescheduled","delay_for":99999999999999999999}]`,
		`[1,null,"device","fwup_progress",{"value":"9","stage":"updating"}]`,
		`["1","2","device","report_network_interface",{"interface":"eth0"}]`,
		`["1","2","extensions","logging:send",{"message":{"a":1},"meta":{"time":"1"}}]`,
		`["1","2","x"`, "\x00\x01\x01\x06\x0212deviceuphi",
	} {
		f.Add([]byte(seed))
	}
	g := newGroup(Group{VersionRequirement: ">= 1.0.0"})
	g.release, g.platform, g.architecture = uuid200, "gwtest", "arm"
	f.Fuzz(func(t *testing.T, data []byte) {
		parseBinaryFrame(data)
		frame, err := parseFrame(data)
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Errorf("untyped error %v", err)
			}
			return
		}
		again, err := parseFrame(frame.encode())
		if err != nil || again.Topic != frame.Topic || again.Event != frame.Event {
			t.Errorf("%s became %+v, %v", data, again, err)
		}
		r := offered()
		if p, err := parseJoin(frame.Payload); err == nil {
			r.join(noon, p, nil, &g)
		}
		r.status(noon, frame.Payload, &g)
		r.progress(noon, frame.Payload)
		r.report(frame.Payload)
		if p, ok := decode(frame.Payload).(map[string]any); ok {
			logLine(p)
		}
	})
}
