package hubtest

import (
	"slices"
	"testing"
	"time"
)

// age makes an inflight row look as if nothing had happened to it for 31 minutes.
func age(at float64, id string) action {
	return action{at, func(w *world) {
		w.edit(id, func(d *device) { d.inflight.UpdatedAt = d.inflight.UpdatedAt.Add(-31 * time.Minute) })
	}}
}

// expireNow runs the worker that otherwise runs every five minutes.
func expireNow(at float64, id string) action {
	return action{at, func(w *world) {
		w.edit(id, func(d *device) {
			if !d.record.expire(time.Now(), w.cfg.InflightExpiry) {
				w.t.Error("nothing expired")
			}
		})
	}}
}

func release(at float64, uuid string) action {
	return action{at, func(w *world) { w.SetRelease(uuid) }}
}

func unblock(at float64, id string) action {
	return action{at, func(w *world) { w.edit(id, func(d *device) { d.blockedUntil = time.Now() }) }}
}

// parked says that three attempts have put the device away for a day.
func parked(s DeviceState) bool {
	left := time.Until(s.BlockedUntil)
	return len(s.Attempts) == 3 && left > 24*time.Hour-time.Minute && left <= 24*time.Hour && s.Inflight == nil
}

func isParked(t *testing.T, s DeviceState) {
	t.Helper()
	if !parked(s) || !slices.Contains(s.Audit, "automatically blocked firmware upgrades for 1440 minutes. Device failure rate met") {
		t.Errorf("not parked: %v, blocked until %v, inflight %+v, audit %q", s.Attempts, s.BlockedUntil, s.Inflight, s.Audit)
	}
}

func attempts(n int) func(*testing.T, DeviceState) {
	return func(t *testing.T, s DeviceState) {
		t.Helper()
		if len(s.Attempts) != n {
			t.Errorf("%d attempts, want %d", len(s.Attempts), n)
		}
	}
}

func settled() []scenario {
	return slices.Concat(parking(), incomplete(), expiry(), rescheduling(), crashing(), superseding())
}

func parking() []scenario {
	drops := scenario{release: uuid110, after: isParked}
	for _, n := range []string{"1", "2", "3", "4"} {
		drops.parts = append(drops.parts, part{file: "settled/o01c-park-by-drop-" + n, device: "o1c", at: time.Second})
	}
	resumed := scenario{release: uuid110, after: attempts(1)}
	for _, n := range []string{"1", "2", "3", "4", "5"} {
		resumed.parts = append(resumed.parts, part{file: "settled/o01e-drop-with-cdu-" + n, device: "o1e", at: time.Second})
	}
	const id = "o1a"
	return []scenario{
		one("settled/o01a-park-by-rejoin", id, scenario{release: uuid110},
			check(21, id, "parked", parked),
			unblock(22.25, id), // the block runs out; the re-join that follows does not help
			check(28.2, id, "parked again", parked),
			unblock(28.25, id), release(28.26, uuid200), // nor does a new release
			check(59, id, "parked once more", parked),
			action{59.5, func(w *world) { w.SetUpdatesEnabled(id, false); w.SetUpdatesEnabled(id, true) }},
			check(59.9, id, "still three attempts", parked),
			action{60.5, func(w *world) { w.ClearPenalty(id) }},
			check(60.65, id, "freed", func(s DeviceState) bool { return len(s.Attempts) == 0 && s.Inflight != nil }),
			check(60.69, id, "another uuid is a success", func(s DeviceState) bool { return s.Successes == 1 && s.Inflight == nil })),
		one("settled/o01b-park-by-rescheduled", "o1b", scenario{release: uuid110, after: isParked}),
		drops,
		one("settled/o01d-rejoin-without-any-status", "o1d", scenario{release: uuid110, after: attempts(0)}),
		resumed,
		timed(30*time.Second, 30*time.Second, one("settled/o01f-timer-after-penalty-delete", "o1f", scenario{release: uuid110},
			action{3.5, func(w *world) {
				w.edit("o1f", func(d *device) {
					now := time.Now()
					d.attempts, d.blockedUntil = []time.Time{now, now, now}, now.Add(24*time.Hour)
				})
			}},
			action{11.3, func(w *world) { w.ClearPenalty("o1f") }})),
	}
}

// incomplete joins, each with an inflight row, two attempts and a block set up
// before it.
func incomplete() []scenario {
	const id = "o2"
	var actions []action
	joins := []struct {
		at             float64 // just before the join
		success, moved bool    // booked as an update; the metadata on record change
	}{
		{4.33, true, false},    // none, with currently_downloading_uuid
		{5.71, true, false},    // none
		{7.09, false, false},   // only the known uuid
		{8.49, true, false},    // only an unknown uuid
		{9.87, false, false},   // known uuid without version
		{11.245, true, false},  // unknown uuid without platform
		{12.645, false, false}, // known uuid, version is a number
		{14.01, true, true},    // the uuid in upper case
		{15.39, true, true},    // another platform, and the uuid back in lower case
	}
	for _, j := range joins {
		var before DeviceState
		actions = append(actions, action{j.at, func(w *world) {
			w.edit(id, func(d *device) {
				now := time.Now()
				d.inflight = &Inflight{UUID: uuid110, Deployment: 9, Status: "received", Progress: -1, UpdatedAt: now}
				d.attempts, d.blockedUntil = []time.Time{now, now}, now.Add(24*time.Hour)
			})
			before, _ = w.Device(id)
		}}, check(j.at+0.03, id, "outcome of the join", func(s DeviceState) bool {
			booked := s.Successes-before.Successes == 1 && s.GroupUpdates-before.GroupUpdates == 1 && len(s.Attempts) == 0 && s.BlockedUntil.IsZero()
			kept := s.Successes == before.Successes && len(s.Attempts) == 2 && !s.BlockedUntil.IsZero()
			return s.Inflight == nil && (j.success && booked || !j.success && kept) && (*s.Metadata != *before.Metadata) == j.moved
		}))
	}
	return []scenario{
		one("settled/o02-incomplete-metadata", id, scenario{
			known: lab(uuid200, "2.0.0"), release: uuid110, before: func(w *world) { w.edit(id, func(d *device) { d.grouped = false }) },
			after: func(t *testing.T, s DeviceState) {
				if s.InGroup || s.Metadata.Platform != "other" || s.Metadata.FwupVersion != "1.13.0" || s.FalseSuccesses != 6 {
					t.Errorf("%+v", s)
				}
			},
		}, actions...),
		one("settled/o02b-same-uuid-other-fields", "o2b", scenario{
			after: func(t *testing.T, s DeviceState) {
				if *s.Metadata != *lab(uuid200, "2.0.0") || s.Successes != 0 {
					t.Errorf("%+v", s)
				}
			},
		}),
		one("settled/ox1-nonsemver-with-version-requirement", "ox1", scenario{
			config: Config{Group: Group{VersionRequirement: ">= 0.1.0"}}, release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if s.InGroup || s.Metadata.Version != "v2" {
					t.Errorf("%+v", s)
				}
			},
		}),
		one("settled/ox3-health-string-numbers", "ox3", scenario{config: Config{Extensions: []string{"health"}}}),
		one("settled/ox2-no-metadata-firmware-validated", "ox2", scenario{
			config: Config{Extensions: []string{"health"}},
			after: func(t *testing.T, s DeviceState) {
				if !slices.Equal(crashes(s), []string{"firmware_validated with nothing on record"}) {
					t.Errorf("%+v", s)
				}
			},
		}),
	}
}

func expiry() []scenario {
	return []scenario{
		one("settled/o09-inflight-expiry", "o9", scenario{release: uuid110, after: attempts(2)},
			age(5.7, "o9"), expireNow(5.75, "o9"),
			action{5.8, func(w *world) { w.edit("o9", func(*device) { w.trigger(time.Now()) }) }}),
		one("settled/o09b-progress-after-expiry", "o9b", scenario{
			release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if s.PhantomRows != 1 || s.Successes != 1 || s.GroupUpdates != 0 || s.Inflight != nil || len(s.Attempts) != 0 {
					t.Errorf("%+v", s)
				}
			},
		}, age(4.5, "o9b"), expireNow(4.6, "o9b"),
			check(16, "o9b", "a phantom row keeps updates away", func(s DeviceState) bool {
				return s.Inflight.UUID == "" && s.Inflight.Status == "completed" && len(s.Attempts) == 2
			})),
		// The hub's clock began at a full hour, so the cron comes at 262 s as recorded.
		timed(60*time.Second, 100*time.Second, one("settled/o09c-expiry-by-cron", "o9c", scenario{lead: 38 * time.Second, release: uuid110, after: attempts(1)},
			age(9, "o9c"),
			check(261, "o9c", "not expired", func(s DeviceState) bool { return s.Inflight != nil && s.Inflight.Progress == 40 }))),
		timed(16*time.Second, 10*time.Second, one("settled/o09d-silent-until-expiry", "o9d", scenario{lead: 110 * time.Second, release: uuid110, after: attempts(0)},
			age(7.4, "o9d"), expireNow(7.5, "o9d"))),
	}
}

func rescheduling() []scenario {
	return []scenario{
		timed(30*time.Second, 30*time.Second, one("settled/o10a-rescheduled-delay", "o10a", scenario{release: uuid110, after: attempts(2)})),
		one("settled/o10b-rescheduled-delay", "o10b", scenario{release: uuid110, after: attempts(1)}),
		timed(30*time.Second, 30*time.Second, one("settled/o10c-rescheduled-100s", "o10c", scenario{release: uuid110, after: attempts(1)})),
		one("settled/o10d-rescheduled-then-rejoin", "o10d", scenario{release: uuid110, after: attempts(1)}),
		one("settled/o10e-rescheduled-without-delay", "o10e", scenario{
			release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if s.Inflight != nil || len(s.Attempts) != 1 || len(s.Crashes) != 0 {
					t.Errorf("%+v", s)
				}
			},
		}, check(10, "o10e", "the row stays without a delay", func(s DeviceState) bool {
			return s.Inflight != nil && s.Inflight.Status == "rescheduled"
		})),
		timed(30*time.Second, 30*time.Second, one("settled/o10f-rescheduled-150s", "o10f", scenario{release: uuid110, after: attempts(1)})),
	}
}

func crashing() []scenario {
	const id = "o11"
	return []scenario{
		one("settled/o11-crashed-channel-no-rejoin", id, scenario{release: uuid110, after: attempts(0)},
			release(11, uuid200),
			check(15, id, "updated into the void", func(s DeviceState) bool {
				return s.Online && !s.Joined && s.Inflight != nil && s.Inflight.Status == "requested" && s.Inflight.UUID == uuid200
			}),
			action{16, func(w *world) {
				if err := w.Reboot(id); err != nil { // accepted and lost
					w.t.Error(err)
				}
			}},
			check(24, id, "kept by the re-join that claims to be downloading", func(s DeviceState) bool { return s.Inflight != nil }),
			action{26.9, func(w *world) { w.Reconnect(id) }}),
		one("settled/o11b-crash-mid-update-rejoin-with-cdu", "o11b", scenario{
			config: Config{Extensions: []string{"health"}}, release: uuid110,
			after: func(t *testing.T, s DeviceState) {
				if len(s.Attempts) != 1 || s.Inflight == nil || s.Inflight.Progress != 50 {
					t.Errorf("%+v", s)
				}
			},
		}, check(4.5, "o11b", "the row survives the crash", func(s DeviceState) bool { return s.Inflight.Status == "received" })),
	}
}

func superseding() []scenario {
	return []scenario{
		one("settled/o13-moved-while-online", "o13", scenario{config: Config{Extensions: []string{"health"}}, release: uuid200},
			action{1.09, func(w *world) { w.MoveDevice("o13", "jitp") }},
			check(1.1, "o13", "out of the group", func(s DeviceState) bool { return !s.InGroup && !s.Socket })),
		one("settled/o12-superseded-while-downloading", "o12", scenario{release: uuid110},
			release(4.2, uuid200),
			check(150, "o12", "the row keeps its target", func(s DeviceState) bool { return s.Inflight.UUID == uuid110 }),
			check(163.5, "o12", "finishing the old one counts", func(s DeviceState) bool { return s.Successes == 1 && s.GroupUpdates == 1 })),
		one("settled/o12c-cdu-without-row", "o12c", scenario{release: uuid110, after: attempts(0)}),
		one("settled/o12f-superseded-then-failed", "o12f", scenario{release: uuid110, after: func(t *testing.T, s DeviceState) {
			if left := time.Until(s.BlockedUntil); left < 23*time.Hour || s.Inflight != nil {
				t.Errorf("blocked for %v, inflight %+v", left, s.Inflight)
			}
		}}, release(4.2, uuid200)),
		one("settled/o12r-superseded-then-rescheduled", "o12r", scenario{release: uuid110}, release(4.2, uuid200)),
	}
}
