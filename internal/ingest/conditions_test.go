package ingest

import (
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestConditions holds endpoints' conditions to what kube-proxy makes of them.
func TestConditions(t *testing.T) {
	yes, no := new(true), new(false)
	cases := map[string]struct {
		reason       string
		in           discoveryv1.EndpointConditions
		draining, ok bool
	}{
		"NothingSaid":     {"ready, where nothing is said", discoveryv1.EndpointConditions{}, false, true},
		"Ready":           {"ready", discoveryv1.EndpointConditions{Ready: yes, Serving: yes, Terminating: no}, false, true},
		"Starting":        {"not ready yet", discoveryv1.EndpointConditions{Ready: no, Serving: no, Terminating: no}, true, false},
		"ServingOnly":     {"serving without terminating is not asked", discoveryv1.EndpointConditions{Ready: no, Serving: yes, Terminating: no}, true, false},
		"Draining":        {"it still serves, for want of others", discoveryv1.EndpointConditions{Ready: no, Serving: yes, Terminating: yes}, true, true},
		"ServingNotSaid":  {"serving, where nothing is said", discoveryv1.EndpointConditions{Ready: no, Terminating: yes}, true, true},
		"Gone":            {"it serves no more", discoveryv1.EndpointConditions{Ready: no, Serving: no, Terminating: yes}, true, false},
		"PublishNotReady": {"a Service that publishes all addresses has them ready", discoveryv1.EndpointConditions{Ready: yes, Serving: no, Terminating: yes}, false, true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			draining, ok := conditions(tc.in)
			if ok != tc.ok || ok && draining != tc.draining {
				t.Errorf("%s: draining %v, called %v; want %v, %v", tc.reason, draining, ok, tc.draining, tc.ok)
			}
		})
	}
}
