package proof

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// This file is the rules of annotations: who may call a port, and how, without SMI.

// A client is who calls. Strict is one from whom nothing may leave in plain text for
// pods of the mesh's namespaces.
type client struct {
	account
	strict bool
}

func (p policy) clientOf(pod *corev1.Pod) client {
	word, said := pod.Annotations["outrigger.dev/mtls"]
	if !said {
		word, said = p.annotation(pod.Namespace, "mtls")
	}
	return client{accountOf(pod), said && strings.ToLower(word) != "permissive"}
}

// A rule is what holds on one port.
type rule struct {
	permissive bool
	plainText  bool     // clients without a proxy may come in
	from       []string // the words of allow-from: who may do everything
	own        bool     // it is more than what the namespace says of mode and plain text
}

// on returns what holds on a port of a pod with a proxy.
func (p policy) on(pod *corev1.Pod, port int32) rule {
	var leads []front
	for _, f := range p.list {
		if targetPort(f.port, pod) == port && slices.Contains(p.behind(f), pod) {
			leads = append(leads, f)
		}
	}
	if len(leads) == 0 {
		return rule{permissive: p.permissive(pod.Namespace)}
	}
	return p.rule(leads, pod)
}

// at returns what holds where something without a proxy serves Services of a
// namespace. Nothing there takes part in more than their mode.
func (p policy) at(namespace, address string, port int32) rule {
	var leads []front
	for _, f := range p.list {
		if f.Namespace == namespace && slices.ContainsFunc(p.endpoints(f), func(e endpoint) bool { return e.address == address && e.port == port }) {
			leads = append(leads, f)
		}
	}
	return rule{permissive: p.rule(leads, nil).permissive}
}

// rule joins what the Services say that lead to one port. What the nearest says holds:
// of mutual TLS the Service's port, the Service, the pod, the namespace. Of several
// Services the strictest holds, and any may let callers in. For an account that a
// TrafficTarget speaks of, annotations let nobody in.
func (p policy) rule(leads []front, pod *corev1.Pod) rule {
	out := rule{permissive: true, plainText: true}
	said := false
	for _, f := range leads {
		mode, own := p.mode(f)
		demand, near := p.demand(f, pod)
		out.permissive = out.permissive && mode
		out.plainText = out.plainText && demand == "permissive"
		out.own = out.own || own || near
		if from, ok := f.Annotations["outrigger.dev/allow-from"]; ok {
			said = true
			out.from = append(out.from, strings.Split(from, ",")...)
		}
	}
	if from, ok := p.annotation(leads[0].Namespace, "allow-from"); ok && !said {
		out.from = strings.Split(from, ",")
	}
	if pod != nil && p.spokenOf(accountOf(pod)) {
		out.from = nil
	}
	out.from = slices.DeleteFunc(out.from, func(word string) bool { return !names.MatchString(strings.TrimSpace(word)) })
	out.own = out.own || len(out.from) > 0
	out.plainText = out.plainText && out.permissive
	return out
}

// names are the words that allow-from takes; any other allows nobody.
var names = regexp.MustCompile(`^(\*|[a-z0-9-]+(/(\*|[a-z0-9.-]+))?)$`)

// lets reports whether allow-from names a caller.
func (r rule) lets(who account) bool {
	return slices.ContainsFunc(r.from, func(word string) bool {
		word = strings.TrimSpace(word)
		return word == "*" || word == who.namespace || word == who.namespace+"/*" || word == who.String()
	})
}

// mode reports whether a Service is permissive, and whether it says so itself.
func (p policy) mode(f front) (permissive, own bool) {
	if word, ok := f.Annotations["outrigger.dev/traffic-policy"]; ok {
		return strings.ToLower(word) == "permissive", true
	}
	return p.permissive(f.Namespace), false
}

// demand returns the word about mutual TLS on the way of a Service port to a pod, and
// whether it is nearer than the namespace's.
func (p policy) demand(f front, pod *corev1.Pod) (string, bool) {
	var all, ofPort string
	if text, ok := f.Annotations["outrigger.dev/mtls"]; ok {
		for entry := range strings.SplitSeq(text, ",") {
			number, word, both := strings.Cut(strings.TrimSpace(entry), "=")
			switch {
			case !both && (number == "strict" || number == "permissive"):
				all = number
			case both && (word == "strict" || word == "permissive"):
				if number == strconv.Itoa(int(f.port.Port)) {
					ofPort = word
				}
			default:
				return "strict", true // a bad value, on all ports
			}
		}
	}
	var ofPod string
	if pod != nil {
		ofPod = pod.Annotations["outrigger.dev/mtls"]
	}
	near := cmp.Or(ofPort, all, ofPod)
	ofNamespace, _ := p.annotation(f.Namespace, "mtls")
	return cmp.Or(near, ofNamespace), near != ""
}

// spokenOf reports whether a TrafficTarget has an account as its destination, even one
// that allows nothing.
func (p policy) spokenOf(who account) bool {
	for _, t := range p.TrafficTargets {
		to := t.Spec.Destination
		if t.Namespace == who.namespace && to.Kind == "ServiceAccount" && to.Name == who.name && (to.Namespace == "" || to.Namespace == t.Namespace) {
			return true
		}
	}
	return false
}

// mayCall reports whether a caller may do anything at a port of a pod with a proxy.
func (p policy) mayCall(who account, pod *corev1.Pod, port int32, proto string) bool {
	r := p.on(pod, port)
	return r.permissive || r.lets(who) || p.opens(who, accountOf(pod), port, proto)
}

// mayUse reports whether a caller may use an endpoint of a Service. What has no proxy
// cannot tell who calls, and is for permissive mode only.
func (p policy) mayUse(who client, f front, e endpoint) bool {
	switch {
	case e.pod != nil && p.meshed(e.pod):
		return p.mayCall(who.account, e.pod, e.port, protocol(f.port))
	case e.pod == nil:
		// To call what somebody wrote down is to leave the mesh.
		return p.at(f.Namespace, e.address, e.port).permissive && !f.headless() && p.mayLeave(who.namespace)
	default:
		return p.at(f.Namespace, e.address, e.port).permissive && !who.strict
	}
}

// reach returns whether a caller is told of a Service port at all, and which of its
// endpoints it may use.
func (p policy) reach(who client, f front) (bool, []endpoint) {
	all := p.endpoints(f)
	usable := slices.DeleteFunc(slices.Clone(all), func(e endpoint) bool { return !p.mayUse(who, f, e) })
	if p.unserved(f) {
		mode, _ := p.mode(f)
		return mode || p.mayOnceServed(who.account, f), usable
	}
	if len(usable) > 0 || p.everyoneFinds(who, f, all) {
		return true, usable
	}
	return p.mayFind(who.account, f, all), usable
}

// everyoneFinds reports whether a Service says itself, or by its namespace, that
// everyone may call it. Where its pods serve another Service on the same port that is
// stricter, that one's word holds.
func (p policy) everyoneFinds(who client, f front, all []endpoint) bool {
	if permissive, _ := p.mode(f); !permissive {
		return false
	}
	pods := slices.DeleteFunc(p.behind(f), func(pod *corev1.Pod) bool { return targetPort(f.port, pod) == 0 })
	if len(pods) > 0 {
		return slices.ContainsFunc(pods, func(pod *corev1.Pod) bool { return p.on(pod, targetPort(f.port, pod)).permissive })
	}
	unmeshed := slices.ContainsFunc(all, func(e endpoint) bool { return e.pod != nil && !p.meshed(e.pod) })
	return !who.strict || !unmeshed || len(p.behind(f)) > 0
}

// mayFind reports whether a caller may call a port of one of a Service's servers, which
// need not have an endpoint yet.
func (p policy) mayFind(who account, f front, all []endpoint) bool {
	pods := p.behind(f)
	special := p.rule([]front{f}, nil).own
	var ports []int32
	for _, pod := range pods {
		if port := targetPort(f.port, pod); port != 0 {
			ports = append(ports, port)
			special = special || p.on(pod, port).own
		}
	}
	for _, e := range all {
		ports = append(ports, e.port)
	}
	return slices.ContainsFunc(pods, func(pod *corev1.Pod) bool {
		if special {
			port := targetPort(f.port, pod)
			return port != 0 && p.mayCall(who, pod, port, protocol(f.port))
		}
		return slices.ContainsFunc(ports, func(port int32) bool { return p.opens(who, accountOf(pod), port, protocol(f.port)) })
	})
}
