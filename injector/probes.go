package injector

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// graceSeconds is Kubernetes' default for terminationGracePeriodSeconds.
const graceSeconds = 30

// A handler is one probe or lifecycle hook of a container.
type handler struct {
	json      string // the JSON pointer of the object that holds httpGet and the like
	path      string // at the agent; unique, because the names of containers are
	timeout   int32  // in seconds; 0 is 1
	container *corev1.Container
	http      *corev1.HTTPGetAction
	tcp       *corev1.TCPSocketAction
	grpc      *corev1.GRPCAction
}

// handlers returns the probes and hooks of all containers but the sidecar's, in
// the order of the pod. Init containers have some if they are sidecars.
func handlers(pod *corev1.Pod) []handler {
	var list []handler
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; !isInit(*c) && !isProxy(*c) {
			list = append(list, containerHandlers(pod, c, "/spec/initContainers/"+strconv.Itoa(i))...)
		}
	}
	for i := range pod.Spec.Containers {
		list = append(list, containerHandlers(pod, &pod.Spec.Containers[i], "/spec/containers/"+strconv.Itoa(i))...)
	}
	return list
}

func containerHandlers(pod *corev1.Pod, c *corev1.Container, json string) []handler {
	var list []handler
	base := "/probe/" + url.PathEscape(c.Name) + "/"
	probe := func(kind, field string, p *corev1.Probe) {
		if p == nil {
			return
		}
		h := handler{json: json + "/" + field, path: base + kind, container: c, http: p.HTTPGet, tcp: p.TCPSocket, grpc: p.GRPC}
		if p.TimeoutSeconds > 1 {
			h.timeout = p.TimeoutSeconds
		}
		list = append(list, h)
	}
	// Of hooks only httpGet matters: the kubelet runs no tcpSocket hook.
	hook := func(kind string, l *corev1.LifecycleHandler) {
		if l != nil && l.HTTPGet != nil {
			list = append(list, handler{json: json + "/lifecycle/" + kind, path: base + kind, container: c, http: l.HTTPGet, timeout: grace(pod)})
		}
	}
	probe("liveness", "livenessProbe", c.LivenessProbe)
	probe("readiness", "readinessProbe", c.ReadinessProbe)
	probe("startup", "startupProbe", c.StartupProbe)
	if c.Lifecycle != nil {
		hook("postStart", c.Lifecycle.PostStart)
		hook("preStop", c.Lifecycle.PreStop)
	}
	return list
}

func grace(pod *corev1.Pod) int32 {
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return int32(min(max(*s, 1), math.MaxInt32))
	}
	return graceSeconds
}

// rewriteProbes returns what the agent must answer for, and the operations that
// send the kubelet to the agent. Handlers that were rewritten earlier are found
// in known.
func rewriteProbes(pod *corev1.Pod, known map[string]bootstrap.Probe) ([]bootstrap.Probe, []jsonpatch.Operation, error) {
	var probes []bootstrap.Probe
	var ops []jsonpatch.Operation
	var errs []error
	for _, h := range handlers(pod) {
		if h.rewritten() {
			if p, ok := known[h.path]; ok && h.http.Path == h.path {
				p.TimeoutSeconds = h.timeout
				probes = append(probes, p)
				continue
			}
		}
		p, port, ok := h.probe()
		if !ok {
			continue
		}
		if ownPort(port) {
			errs = append(errs, fmt.Errorf("container %s: %s asks port %d: ports %d to %d belong to the mesh", h.container.Name, h.json, port, firstPort, lastPort))
			continue
		}
		probes = append(probes, p)
		ops = append(ops, h.redirect()...)
	}
	return probes, ops, errors.Join(errs...)
}

// rewritten reports whether h asks the agent.
func (h handler) rewritten() bool {
	return h.http != nil && h.http.Host == "" && h.http.Port == intstr.FromInt32(bootstrap.AgentPort)
}

// probe returns what the agent must do in place of the kubelet, and the port that
// it asks. It reports false for a handler that stays as it is: exec, one whose
// target the kubelet would not find either, and one with a host of its own, for
// which the agent would be a relay for anyone.
func (h handler) probe() (bootstrap.Probe, int32, bool) {
	p := bootstrap.Probe{Path: h.path, TimeoutSeconds: h.timeout}
	var number int32
	switch {
	case h.http != nil && h.http.Host == "":
		if s := h.http.Scheme; s != "" && s != corev1.URISchemeHTTP && s != corev1.URISchemeHTTPS {
			return p, 0, false
		}
		number = h.port(h.http.Port)
		p.HTTP = &bootstrap.HTTPProbe{Port: number, PortName: h.http.Port.StrVal, Path: h.http.Path, TLS: h.http.Scheme == corev1.URISchemeHTTPS}
		for _, header := range h.http.HTTPHeaders {
			p.HTTP.Headers = append(p.HTTP.Headers, bootstrap.Header{Name: header.Name, Value: header.Value})
		}
	case h.tcp != nil && h.tcp.Host == "":
		number = h.port(h.tcp.Port)
		p.TCP = &bootstrap.TCPProbe{Port: number, PortName: h.tcp.Port.StrVal}
	case h.grpc != nil:
		number = h.grpc.Port
		p.GRPC = &bootstrap.GRPCProbe{Port: number}
		if h.grpc.Service != nil {
			p.GRPC.Service = *h.grpc.Service
		}
	}
	return p, number, number >= 1 && number <= math.MaxUint16
}

// port returns the number of a port, by the container's own names as the kubelet
// does it; 0 if it has none of that name.
func (h handler) port(p intstr.IntOrString) int32 {
	if p.Type == intstr.Int {
		return p.IntVal
	}
	for _, named := range h.container.Ports {
		if named.Name == p.StrVal {
			return named.ContainerPort
		}
	}
	return 0
}

// redirect sends the kubelet to the agent. An httpGet is changed field by field,
// so that fields of a newer Kubernetes stay.
func (h handler) redirect() []jsonpatch.Operation {
	if h.http == nil {
		was := "/tcpSocket"
		if h.tcp == nil {
			was = "/grpc"
		}
		to := corev1.HTTPGetAction{Path: h.path, Port: intstr.FromInt32(bootstrap.AgentPort), Scheme: corev1.URISchemeHTTP}
		return []jsonpatch.Operation{remove(h.json + was), add(h.json+"/httpGet", to)}
	}
	ops := []jsonpatch.Operation{add(h.json+"/httpGet/path", h.path), add(h.json+"/httpGet/port", bootstrap.AgentPort)}
	if h.http.Scheme == corev1.URISchemeHTTPS {
		ops = append(ops, add(h.json+"/httpGet/scheme", corev1.URISchemeHTTP))
	}
	if h.http.HTTPHeaders != nil {
		ops = append(ops, remove(h.json+"/httpGet/httpHeaders"))
	}
	return ops
}

// restore undoes redirect.
func (h handler) restore(p bootstrap.Probe) []jsonpatch.Operation {
	at := h.json + "/httpGet"
	switch {
	case p.TCP != nil:
		was := corev1.TCPSocketAction{Port: portNamed(p.TCP.PortName, p.TCP.Port)}
		return []jsonpatch.Operation{remove(at), add(h.json+"/tcpSocket", was)}
	case p.GRPC != nil:
		was := map[string]any{"port": p.GRPC.Port} // corev1.GRPCAction would write "service": null
		if p.GRPC.Service != "" {
			was["service"] = p.GRPC.Service
		}
		return []jsonpatch.Operation{remove(at), add(h.json+"/grpc", was)}
	case p.HTTP == nil:
		return nil
	}
	ops := []jsonpatch.Operation{add(at+"/port", portNamed(p.HTTP.PortName, p.HTTP.Port))}
	if p.HTTP.Path == "" {
		ops = append(ops, remove(at+"/path"))
	} else {
		ops = append(ops, add(at+"/path", p.HTTP.Path))
	}
	if p.HTTP.TLS {
		ops = append(ops, add(at+"/scheme", corev1.URISchemeHTTPS))
	}
	if len(p.HTTP.Headers) > 0 {
		var headers []corev1.HTTPHeader
		for _, header := range p.HTTP.Headers {
			headers = append(headers, corev1.HTTPHeader{Name: header.Name, Value: header.Value})
		}
		ops = append(ops, add(at+"/httpHeaders", headers))
	}
	return ops
}

func portNamed(name string, number int32) intstr.IntOrString {
	if name != "" {
		return intstr.FromString(name)
	}
	return intstr.FromInt32(number)
}
