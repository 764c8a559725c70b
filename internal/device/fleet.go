package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A Fleet is many devices in one process.
type Fleet struct {
	Devices []*Device
	stagger time.Duration
}

// NewFleet makes n devices that differ from c in their ID only: c.ID-0001 and
// so on, or c.ID itself if n is 1. Each is switched on stagger after the one
// before.
func NewFleet(c Config, n int, stagger time.Duration) *Fleet {
	f := &Fleet{stagger: stagger}
	for i := range n {
		one := c
		if n > 1 {
			one.ID = fmt.Sprintf("%s-%04d", c.ID, i+1)
		}
		f.Devices = append(f.Devices, New(one))
	}
	return f
}

// Check reports what is wrong with the devices' Config, by field.
func (f *Fleet) Check() error {
	for _, d := range f.Devices {
		if err := d.cfg.Check(); err != nil {
			return err
		}
	}
	return nil
}

// Run runs the devices until ctx ends, which is no error, or one of them has a
// wrong Config. Config.Log is called from the goroutine of each.
func (f *Fleet) Run(ctx context.Context) error {
	if err := f.Check(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(f.Devices))
	for i, d := range f.Devices {
		if i > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(f.stagger):
			}
		}
		wg.Go(func() { errs[i] = d.Run(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Totals is a Fleet at one moment, summed over its devices. Online and Joined
// are now, the others since the start.
type Totals struct {
	Devices, Online, Joined, Updates, Reboots, Commands, Refused int
}

// Totals may be called at any time.
func (f *Fleet) Totals() Totals {
	t := Totals{Devices: len(f.Devices)}
	for _, d := range f.Devices {
		c := d.Counts()
		if c.Online {
			t.Online++
		}
		if c.Link {
			t.Joined++
		}
		t.Updates += c.Updates
		t.Reboots += c.Reboots
		t.Refused += c.Refused
		for _, n := range c.Commands {
			t.Commands += n
		}
	}
	return t
}

func (t Totals) String() string {
	return fmt.Sprintf("%d devices: %d online, %d joined, %d updates, %d reboots, %d commands, %d refusals",
		t.Devices, t.Online, t.Joined, t.Updates, t.Reboots, t.Commands, t.Refused)
}
