package webhook

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/outrigger-mesh/outrigger/injector"
)

// Counter registers the metric outrigger_injections_total, by outcome and reason,
// and returns the function that counts, for [Config].
func Counter(registry prometheus.Registerer) (func(injector.Verdict), error) {
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "outrigger_injections_total",
		Help: "Pods that were judged at admission, by what happened to them and why.",
	}, []string{"outcome", "reason"})
	if err := registry.Register(counter); err != nil {
		return nil, err
	}
	return func(v injector.Verdict) { counter.WithLabelValues(v.Outcome.String(), string(v.Reason)).Inc() }, nil
}
