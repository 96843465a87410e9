package main

import (
	"io"
	"strings"
	"testing"
)

func TestParseConfig(t *testing.T) {
	good := []string{"--proxy-image=p", "--init-image=i", "--webhook-configuration=w"}
	cases := map[string]struct {
		reason string
		args   []string
		want   []string // what the error must name; none means no error
	}{
		"the chart's":    {reason: "defaults are good", args: good},
		"lists":          {reason: "empty and several", args: append(good, "--service-cidrs=", "--exclude-outbound-ports=1,2, 3")},
		"nothing":        {reason: "all that is missing is told at once", want: []string{"--proxy-image", "--init-image", "--webhook-configuration"}},
		"policy":         {reason: "the value and what is allowed", args: append(good, "--traffic-policy=open"), want: []string{"--traffic-policy", `"open"`, "permissive, enforced"}},
		"port":           {reason: "ports have an end", args: append(good, "--exclude-inbound-ports=70000"), want: []string{"exclude-inbound-ports", "70000", "1 to 65535"}},
		"range":          {reason: "a range is not an address", args: append(good, "--service-cidrs=10.0.0.1"), want: []string{"service-cidrs", "10.0.0.1", "10.0.0.0/8"}},
		"short lifetime": {reason: "renewal needs time", args: append(good, "--workload-certificate-duration=1m"), want: []string{"--workload-certificate-duration", "1m0s", "10m to 720h"}},
		"an argument":    {reason: "a flag without dashes is told", args: append(good, "egress=deny"), want: []string{"egress=deny"}},
		"address":        {reason: "a URI constraint cannot be an address", args: append(good, "--trust-domain=10.0.0.1"), want: []string{"trustDomain", "10.0.0.1", "address"}},
		"CA's Secret":    {reason: "it is the name of an object", args: append(good, `--authority={"builtIn":{"secret":"My CA"}}`), want: []string{"--authority", "builtIn.secret", "My CA"}},
		"collector":      {reason: "an address and a name", args: append(good, "--tracing-collector=otel.watch.svc:4317", "--tracing-sampling=0.25")},
		"no port":        {reason: "a collector has one", args: append(good, "--tracing-collector=otel.watch"), want: []string{"--tracing-collector", "otel.watch", "HOST:PORT"}},
		"bare collector": {reason: "proxies are in many namespaces", args: append(good, "--tracing-collector=otel:4317"), want: []string{"--tracing-collector", "otel:4317", "namespace or domain"}},
		"sampling":       {reason: "Envoy knows no parts of a hundredth", args: append(good, "--tracing-sampling=0.001"), want: []string{"--tracing-sampling", "0.001", "two decimals"}},
		"trust domain":   {reason: "it becomes part of a URI", args: append(good, "--trust-domain=a/b"), want: []string{"--trust-domain", "a/b"}},
	}
	env := func(name string) string {
		return map[string]string{"POD_NAMESPACE": "outrigger-system", "POD_NAME": "outriggerd-1", "POD_UID": "1"}[name]
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := parseConfig(tc.args, env, io.Discard)
			if (err != nil) != (len(tc.want) > 0) {
				t.Fatalf("%s: %v", tc.reason, err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v does not name %s", tc.reason, err, want)
				}
			}
		})
	}
}

func TestInjectorSettings(t *testing.T) {
	cfg, err := parseConfig([]string{"--namespace=s", "--pod=p", "--pod-uid=1", "--proxy-image=p", "--init-image=i", "--webhook-configuration=w", "--proxy-cpu=lots", "--legacy-iptables=true"}, func(string) string { return "" }, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.injector(""); err == nil || !strings.Contains(err.Error(), `--proxy-cpu is "lots"`) {
		t.Errorf("a wrong quantity gives %v", err)
	}
	cfg.proxy.cpu = "20m"
	settings, err := cfg.injector("")
	if err != nil {
		t.Fatal(err)
	}
	if !settings.LegacyIptables {
		t.Error("legacy iptables were asked for and forgotten")
	}
	if want := "outriggerd.s.svc.cluster.local:15128"; settings.ControlPlane != want {
		t.Errorf("proxies go to %s, want %s", settings.ControlPlane, want)
	}
	if want := "spiffe://cluster.local/ns/s/sa/outriggerd"; settings.ControlPlaneID != want {
		t.Errorf("proxies expect %s, want %s", settings.ControlPlaneID, want)
	}
}
