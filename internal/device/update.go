package device

import (
	"context"
	"errors"
	"slices"
)

const (
	progressStep = 10    // percent
	wait         = 60000 // ms, asked for when an image cannot be had now
)

// seen remembers ref in flash, and reports whether it was there already.
func (d *Device) seen(ref uint64) bool {
	if ref == 0 {
		return false
	}
	if slices.Contains(d.flash.refs, ref) {
		return true
	}
	if len(d.flash.refs) == refsKept {
		d.flash.refs = slices.Delete(d.flash.refs, 0, 1)
	}
	d.flash.refs = append(d.flash.refs, ref)
	return false
}

func (d *Device) executed(name string, ref uint64) {
	d.count(func(c *Counts) {
		if c.Commands == nil {
			c.Commands = make(map[uint64]int)
		}
		c.Commands[ref]++
		if len(c.Commands) > countedRefs {
			delete(c.Commands, oldest(c.Commands))
		}
		if name == "identify" {
			c.Identifies++
		}
	})
}

// oldest is the lowest ref, since they grow.
func oldest(m map[uint64]int) uint64 {
	first := uint64(0)
	for ref := range m {
		if first == 0 || ref < first {
			first = ref
		}
	}
	return first
}

func (b *boot) update(payload []byte) {
	if len(payload) == 0 {
		if b.transfer != nil {
			b.halt()
			b.d.emit(UpdateIgnored{"withdrawn"})
		}
		return
	}
	o, err := parseOffer(payload)
	switch {
	case err != nil:
		b.d.emit(UpdateIgnored{err.Error()})
	case o.runs(b.d.flash.firmware):
		b.d.emit(UpdateIgnored{"already running " + o.firmware.String()})
	case b.leaving:
		b.d.emit(UpdateIgnored{"rebooting"})
	case b.transfer != nil && b.transfer.offer.key() == o.key():
		newest(b.transfer.urls, o.url) // said again after a hello, with a signature that lives longer
	default:
		b.halt()
		b.begin(o)
	}
}

func (b *boot) begin(o offer) {
	d := b.d
	i := d.flash.partial
	d.flash.partial = nil
	if i == nil || i.key != o.key() {
		i = newImage(o)
	}
	d.emit(UpdateReceived{o.firmware.Version, o.firmware.UUID, o.size, i.at})
	t := newTransfer(o, i, d.cfg.HTTP, d.cfg.Flash)
	if d.has(FaultReboot) && d.flash.cut != i.key {
		size := o.size
		t.cutAt = 1 + max(i.at, size/5) + d.rand.Int64N(size/2+1)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	t.cancel = cancel
	b.transfer = t
	b.status("received", "", 0)
	b.status("started", "", 0)
	go func() { t.done <- t.run(ctx) }() // ended and waited for by halt, or awaited by run
}

// halt ends the transfer and leaves what it wrote in flash.
func (b *boot) halt() {
	t := b.transfer
	if t == nil {
		return
	}
	t.cancel()
	<-t.done
	b.transfer, b.d.flash.partial = nil, t.image
}

func (b *boot) mark(percent int) {
	t := b.transfer
	if step := percent - percent%progressStep; step > t.last && percent < 100 {
		t.last = step
		b.progress(step)
	}
}

// finish takes the outcome of a transfer that ended by itself.
func (b *boot) finish(err error) {
	t, d := b.transfer, b.d
	t.cancel()
	b.transfer = nil
	switch {
	case err == nil:
		b.install(t)
	case errors.Is(err, errPowerCut):
		d.flash.partial, d.flash.cut = t.image, t.image.key
		d.emit(Misbehaved{FaultReboot, "power cut in the middle of a download"})
		d.emit(Rebooting{"fault"})
		b.down = true
	case b.ctx.Err() != nil:
		d.flash.partial = t.image
	case errors.Is(err, errImage):
		b.fail("failed", err, 0)
	default: // failed would block the device for a day: this may pass
		d.flash.partial = t.image
		b.fail("rescheduled", err, wait)
	}
}

func (b *boot) fail(word string, err error, delay int) {
	b.d.emit(UpdateFailed{word, err})
	b.final(word, err.Error(), delay)
}

// final publishes a terminal status.
func (b *boot) final(word, reason string, delay int) {
	b.status(word, reason, delay)
	if b.d.has(FaultDoubleFinal) {
		b.d.emit(Misbehaved{FaultDoubleFinal, word + " again"})
		b.status(word, reason, delay)
	}
}

func (b *boot) install(t *transfer) {
	d := b.d
	sum := t.image.digest()
	b.progress(100)
	d.emit(Fetched{t.image.at, sum})
	if d.has(FaultDoubleFinal) {
		// completed twice does no harm upstream, failed twice would.
		b.fail("failed", errors.New("simulated"), 0)
		return
	}
	b.final("completed", "", 0)
	next := t.offer.installed(d.flash.firmware, sum)
	d.flash.next = &next
	b.leave("update")
}
