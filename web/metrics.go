package web

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"ganglion/bridge"
)

// A collector turns the gateway's snapshots into metrics when they are asked
// for. Labels come from fixed lists: no device ever makes a series of its own.
type collector struct{ gateway Gateway }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("ganglion_"+name, help, labels, nil)
}

var (
	devices  = desc("devices", "Devices the gateway holds a session for, by where they stand with NervesHub.", "state")
	clients  = desc("mqtt_clients", "Devices connected to the broker.")
	updates  = desc("updates", "Devices with an update under way, by the last word about it.", "status")
	brokerUp = desc("mqtt_up", "1 while the broker can serve devices.")
	joined   = desc("joins_total", "Device channels NervesHub has accepted, re-joins included.")
	refused  = desc("refusals_total", "Links and channels that ended or never came up, by cause.", "reason")
	messages = desc("messages_total", "Messages carried, by direction (up: from a device, down: to a device, hub: to NervesHub, from_hub) and name.", "direction", "name")
	errs     = desc("device_errors_total", "Publishes answered on down/error, by code.", "code")
	dropped  = desc("dropped_total", "Messages that gave way, by policy.", "where", "policy")
)

// Describe implements [prometheus.Collector].
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{devices, clients, updates, brokerUp, joined, refused, messages, errs, dropped} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	byState, byWord := map[bridge.State]int{}, map[string]int{}
	for _, d := range c.gateway.Devices() {
		byState[d.State]++
		if d.Update != nil {
			byWord[d.Update.Word]++
		}
	}
	for _, s := range bridge.States() {
		gauge(devices, float64(byState[s]), string(s))
	}
	for w, n := range byWord {
		if w == "" {
			w = "offered"
		}
		gauge(updates, float64(n), w)
	}
	connected, lost, err := c.gateway.Broker()
	gauge(clients, float64(connected))
	up := 1.0
	if err != nil {
		up = 0
	}
	gauge(brokerUp, up)
	c.counters(ch, lost)
}

func (c collector) counters(ch chan<- prometheus.Metric, lost map[string]uint64) {
	each := func(d *prometheus.Desc, by map[string]uint64, before ...string) {
		for label, n := range by {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), append(before[:len(before):len(before)], label)...)
		}
	}
	n := c.gateway.Counters()
	ch <- prometheus.MustNewConstMetric(joined, prometheus.CounterValue, float64(n.Joins))
	each(refused, n.Refusals)
	each(messages, n.Up, "up")
	each(messages, n.Down, "down")
	each(messages, n.Hub, "hub")
	each(messages, n.FromHub, "from_hub")
	each(errs, n.Errors)
	each(dropped, n.Dropped, "bridge")
	each(dropped, lost, "mqtt")
}

// registry has the gateway's metrics, the process's and Go's.
func registry(g Gateway, version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "ganglion_info", Help: "Always 1; the version runs.",
		ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	r.MustRegister(collector{g}, info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
