package hubtest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// Every recording of testdata/transcripts is replayed here, those of
// authentication in package auth. Of the recordings that were made, these are
// not covered:
//
//   - 33-vsn3-json-text, a JSON frame on a MessagePack socket: the stand-in
//     refuses vsn=3.0.0 with 403, as servers before July 2026 do, so there is
//     no such socket.
//   - settled/o05 and o14: the stand-in makes no deltas, and a thousand clients
//     are no conversation.

// A scenario is one or more recordings of the same device, one after the other
// or at the same time, and what was true of the product.
type scenario struct {
	config  Config
	lead    time.Duration // how long the hub has been running; 10 s if 0
	release string
	archive bool
	known   *Metadata // on record, and in the group, before the first connection
	before  func(w *world)
	parts   []part
	after   func(t *testing.T, s DeviceState) // of the first part's device
}

// A part is one recording.
type part struct {
	file        string
	device      string        // mtls-1 if empty
	with        bool          // begins during the part before it
	at          time.Duration // this much after it began, or ended
	early, late time.Duration // how far `update` may be off, where the orchestrator's timer decides
	actions     []action
}

// An action is what an operator did, or what was done in the database, at a
// time the recording does not show but implies.
type action struct {
	at float64 // seconds
	do func(w *world)
}

func lab(uuid, version string) *Metadata {
	return &Metadata{UUID: uuid, Product: "gw", Version: version, Platform: "gwtest", Architecture: "arm"}
}

var on100, on110 = lab(uuid100, "1.0.0"), lab(uuid110, "1.1.0")

// one is a scenario of a single recording.
func one(file, device string, s scenario, actions ...action) scenario {
	s.parts = []part{{file: file, device: device, actions: actions}}
	return s
}

// timed widens the window of the only part's updates.
func timed(early, late time.Duration, s scenario) scenario {
	s.parts[0].early, s.parts[0].late = early, late
	return s
}

func TestReplay(t *testing.T) {
	t.Run("ordinary", func(t *testing.T) { replayAll(t, ordinary()) })
	t.Run("updates", func(t *testing.T) { replayAll(t, updates()) })
	t.Run("odd", func(t *testing.T) { replayAll(t, odd()) })
	t.Run("settled", func(t *testing.T) { replayAll(t, settled()) })
}

func replayAll(t *testing.T, all []scenario) {
	for _, s := range all {
		t.Run(s.parts[0].file, func(t *testing.T) { s.run(t) })
	}
}

func (s scenario) run(t *testing.T) {
	p := product()
	s.config.Keys, s.config.WebURL = p.keys, "http://localhost:14000"
	s.config.Group.ID = p.groupID[s.parts[0].file]
	bubble(t, s.config, func(t *testing.T, w *world) {
		w.AddFirmware(Firmware{UUID: uuid100, Product: "gw", Version: "1.0.0", Platform: "gwtest", Architecture: "arm"})
		for _, f := range p.firmware {
			w.AddFirmware(f)
		}
		if s.release != "" {
			w.SetRelease(s.release)
		}
		if s.archive {
			w.SetArchive(p.archive)
		}
		if s.before != nil {
			s.before(w)
		}
		if s.known != nil {
			w.edit(s.id(0), func(d *device) { d.meta, d.grouped, d.validation = s.known, s.release != "", "validated" })
		}
		time.Sleep(max(s.lead, 10*time.Second))
		s.play(w)
		if state, ok := w.Device(s.id(0)); s.after != nil && ok {
			s.after(t, state)
		}
	})
}

func (s scenario) id(i int) string {
	if s.parts[i].device == "" {
		return "mtls-1"
	}
	return s.parts[i].device
}

func (s scenario) play(w *world) {
	for i, p := range s.parts {
		p.device = s.id(i)
		if i+1 < len(s.parts) && s.parts[i+1].with {
			w.wg.Go(func() { w.play(p) })
			continue
		}
		time.Sleep(p.at)
		w.play(p)
		time.Sleep(100 * time.Millisecond)
	}
}

// edit is the recorder's SQL.
func (w *world) edit(id string, f func(*device)) {
	w.mu.Lock()
	defer w.unlock()
	f(w.device(id))
}

// check looks at the device between two frames.
func check(at float64, id, what string, ok func(DeviceState) bool) action {
	return action{at, func(w *world) {
		w.t.Helper()
		if s, _ := w.Device(id); !ok(s) {
			s.Frames = nil
			w.t.Errorf("at %.2f s: not so: %s: %+v", at, what, s)
		}
	}}
}

func crashes(s DeviceState) (reasons []string) {
	for _, c := range s.Crashes {
		reasons = append(reasons, c.Reason)
	}
	return reasons
}

func ordinary() []scenario {
	return []scenario{
		one("01-mtls-join-extensions", "", scenario{
			config:  Config{Extensions: []string{"geo", "health", "local_shell", "network_identity"}},
			release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if s.Interface != "ethernet" || s.Health == nil || s.Location == nil || s.Identities == nil || string(s.ConnectionTypes) != `["ethernet"]` || s.HeartbeatsSeen != 2 {
					t.Errorf("reports: %+v", s)
				}
			},
		}),
		one("02-hmac-join", "hmac-1", scenario{}),
		one("05-reboot-identify-reconnect", "", scenario{known: on110, release: uuid110},
			action{0.22, func(w *world) { w.Reboot("mtls-1") }},
			action{1.52, func(w *world) { w.Identify("mtls-1") }},
			action{2.56, func(w *world) { w.Reconnect("mtls-1") }}),
		{
			known: on110,
			parts: []part{
				{file: "06-console-device", actions: []action{{4.471, func(w *world) {
					for _, key := range []string{"h", "i", "\r"} {
						w.Push("mtls-1", "console", "dn", map[string]string{"data": key})
					}
				}}}},
				{file: "06-console-user", with: true, at: 216 * time.Millisecond},
			},
		},
		one("07-scripts-run", "", scenario{known: on110, release: uuid110},
			action{0.528, func(w *world) { w.wg.Go(func() { w.script("hi\\n\n2", nil) }) }},
			action{0.746, func(w *world) { w.wg.Go(func() { w.script("", context.DeadlineExceeded) }) }},
			action{4.0, func(w *world) { w.SetConnectingCode("IO.puts(:connecting)") }}),
		one("07d-scripts-old-device-api", "", scenario{known: on110, release: uuid110},
			action{1, func(w *world) { w.script("", ErrScripts) }}),
		one("08-archive", "", scenario{known: on110, release: uuid110},
			action{0.242, func(w *world) { w.SetArchive(product().archive) }}),
		one("09-logging-extension", "", scenario{
			config: Config{Extensions: []string{"logging"}}, known: on110, release: uuid110, archive: true,
			after: func(t *testing.T, s DeviceState) {
				want := []string{
					"hello one", "time in meta us", `{"a":1}`, "nonstring meta", "no level",
					"burst 1", "burst 2", "burst 3", "burst 4", "burst 5", "burst 6", "burst 7", "burst 8", "burst 9", "burst 10",
				}
				if !slices.Equal(s.Logs, want) {
					t.Errorf("logs %q", s.Logs)
				}
			},
		}),
		one("32-extension-detach-attach", "", scenario{config: Config{Extensions: []string{"geo", "health"}}, known: on110},
			action{0.989, func(w *world) { w.SetExtension("geo", false) }},
			action{1.794, func(w *world) { w.SetExtension("geo", true) }}),
		one("37-extensions-without-device-join", "", scenario{config: Config{Extensions: []string{"geo", "health", "local_shell"}}}),
	}
}

// script runs the script of the recording.
func (w *world) script(want string, wantErr error) {
	got, err := w.RunScript(context.Background(), "mtls-1", `IO.puts("hi"); 1+1`)
	if got != want || !errors.Is(err, wantErr) {
		w.t.Errorf("script: %q, %v; want %q, %v", got, err, want, wantErr)
	}
}

// blocked says that the device is in the penalty box for about d.
func blocked(d time.Duration) func(*testing.T, DeviceState) {
	return func(t *testing.T, s DeviceState) {
		t.Helper()
		if left := time.Until(s.BlockedUntil); left > d || left < d-2*time.Second || s.Inflight != nil || len(s.Attempts) != 1 {
			t.Errorf("blocked for %v, attempts %v, inflight %+v; want %v, one and none", left, s.Attempts, s.Inflight, d)
		}
	}
}

func updates() []scenario {
	return []scenario{
		{
			known: on100, release: uuid110,
			parts: []part{
				{file: "03a-update-from-deployment-group"},
				{file: "03b-rejoin-new-firmware-validated", actions: []action{
					check(1.7, "mtls-1", "validated success", func(s DeviceState) bool {
						return s.Successes == 1 && s.GroupUpdates == 1 && s.Validation == "validated" && s.Inflight == nil && len(s.Attempts) == 0
					}),
				}},
				{file: "03c-new-release-while-online", at: 10 * time.Second, actions: []action{
					{4.772, func(w *world) { w.SetRelease(uuid200) }},
				}},
			},
			after: func(t *testing.T, s DeviceState) {
				if s.FalseSuccesses != 0 || s.PhantomRows != 0 || len(s.Attempts) != 1 || s.Inflight.Status != "completed" {
					t.Errorf("%+v", s)
				}
			},
		},
		one("04-status-failed", "", scenario{known: on100, release: uuid110, after: blocked(24 * time.Hour)}),
		one("04-status-ignored", "", scenario{known: on100, release: uuid110, after: blocked(24 * time.Hour)}),
		one("04-status-rescheduled", "", scenario{known: on100, release: uuid110, after: blocked(time.Minute)}),
		one("04-update-manual", "", scenario{
			known: on110, release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if s.UpdatesEnabled || !s.BlockedUntil.IsZero() || s.Inflight != nil || len(s.Attempts) != 1 {
					t.Errorf("%+v", s)
				}
			},
		}, action{0.243, func(w *world) {
			if err := w.PushUpdate("mtls-1", uuid200); err != nil {
				w.t.Error(err)
			}
		}}, action{0.3, func(w *world) {
			if err := w.PushUpdate("mtls-1", uuid200); !errors.Is(err, ErrInflight) {
				w.t.Errorf("second push: %v", err)
			}
		}}),
		{
			known: on100, release: uuid110,
			parts: []part{
				{file: "25a-mid-update-drop", actions: []action{{1.458, func(w *world) { w.Drop("mtls-1") }}}},
				{file: "25b-rejoin-with-currently_downloading_uuid", at: 2 * time.Second},
				{file: "25c-rejoin-without-currently_downloading_uuid", at: 2 * time.Second},
			},
			after: func(t *testing.T, s DeviceState) {
				if len(s.Attempts) != 1 || s.Inflight.Status != "requested" {
					t.Errorf("%+v", s)
				}
			},
		},
		{
			release: "5d85c319-0348-ea39-5897-a72fb2680bcc",
			parts: []part{
				{file: "30a-espidf-join-update", device: "esp-1"},
				{file: "30b-espidf-rejoin-validated", device: "esp-1", at: 2 * time.Second},
			},
			after: func(t *testing.T, s DeviceState) {
				if s.Successes != 1 || *s.Metadata != (Metadata{UUID: "5d85c319-0348-ea39-5897-a72fb2680bcc", Product: "gw", Version: "1.1.0", Platform: "esp32s3", Architecture: "xtensa"}) {
					t.Errorf("%+v", s)
				}
			},
		},
		one("90-status-too-soon-crashes-channel", "", scenario{
			known: on100, release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if len(s.Crashes) != 1 || len(s.Attempts) != 0 || s.Inflight == nil || s.Inflight.Status != "requested" {
					t.Errorf("%+v", s)
				}
			},
		}),
		one("91-not-validated-device-gets-no-update", "", scenario{known: on110, release: uuid110, archive: true},
			action{5, func(w *world) { w.SetRelease(uuid200) }}),
		timed(25*time.Second, 25*time.Second,
			one("93-validated-later-when-is-the-update-pushed", "", scenario{known: on100, release: uuid110})),
	}
}

func odd() []scenario {
	return []scenario{
		one("21-misuse-channel-crashes", "", scenario{
			known: on110, release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				want := []string{
					`unknown status "verifying"`, "status_update without a string status", "progress is not an integer",
					"unknown stage extracting", "failed without an inflight update",
				}
				if !slices.Equal(crashes(s), want) || s.PhantomRows != 3 || s.Interface != "unknown" || s.Validation != "not_validated" {
					t.Errorf("%+v", s)
				}
			},
		}),
		one("21b-ignored-without-inflight-foreign-product", "mtls-2", scenario{
			release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if s.InGroup || len(s.Crashes) != 1 {
					t.Errorf("%+v", s)
				}
			},
		}),
		one("22-raw-join-twice-no-joinref", "", scenario{
			known: on110, release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				n := 0
				for _, a := range s.Audit {
					if a == "firmware validated" {
						n++
					}
				}
				if n != 1 { // the null join_ref counts, the stale one does not
					t.Errorf("validated %d times", n)
				}
			},
		}),
		one("23-idle-no-heartbeat", "hmac-idle", scenario{}),
		one("23b-idle-ws-pings-only", "hmac-idle", scenario{}, action{242.866, func(w *world) { w.Drain() }}),
		{
			known: on110,
			parts: []part{{file: "24-duplicate-first"}, {file: "24-duplicate-second", with: true, at: 755 * time.Millisecond}},
			after: func(t *testing.T, s DeviceState) {
				if s.Evictions != 1 || s.Connections != 2 || s.Online {
					t.Errorf("%+v", s)
				}
			},
		},
		one("31-join-without-metadata", "hmac-bare", scenario{
			release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if s.Metadata.Version != "not-semver" || s.FalseSuccesses != 2 || s.InGroup {
					t.Errorf("%+v", s)
				}
			},
		}),
		one("34-device-deleted-while-online", "", scenario{
			known: on110, release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if !s.Deleted || len(s.Crashes) != 0 || s.Inflight == nil {
					t.Errorf("%+v", s)
				}
			},
		}, action{0.6, func(w *world) { w.DeleteDevice("mtls-1") }}, action{2.5, func(w *world) {
			if _, _, err := w.tryDial("mtls-1"); err == nil {
				w.t.Error("a deleted device got in")
			}
		}}),
		one("36-non-semver-version", "", scenario{
			known: lab("11111111-2222-3333-4444-555555555555", "build-17"), release: uuid110, archive: true,
		}),
		one("40-server-graceful-stop", "", scenario{known: on110, release: uuid110, archive: true},
			action{0.518, func(w *world) { w.Drain() }}),
		one("92-join-another-devices-topic", "", scenario{
			known: on110, release: uuid110,
			before: func(w *world) { w.AddDevice("mtls-1"); w.AddDevice("hmac-1") },
			after: func(t *testing.T, s DeviceState) {
				if s.Joined || s.Metadata == nil {
					t.Errorf("%+v", s)
				}
			},
		},
			action{1.524, func(w *world) { w.Reboot("hmac-1") }},
			action{2.0, func(w *world) { w.Reboot("mtls-1") }}),
	}
}
