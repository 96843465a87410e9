package bootstrap

// InboundStats begins the stat_prefix of every HTTP manager on the inbound side.
// The agent reads there whether requests are still on their way.
const InboundStats = "inbound"

// statsConfig admits the few statistics that somebody reads. By default Envoy
// keeps 45 kB of them for each service that it knows.
func statsConfig() object {
	return object{"stats_matcher": object{"inclusion_list": object{"patterns": list{
		object{"prefix": "server."},
		object{"prefix": "cluster_manager."},
		object{"prefix": "listener_manager."},
		object{"prefix": "control_plane."},
		object{"prefix": "outrigger."},
		object{"prefix": "cluster.outriggerd.upstream_cx_connect"},
		// Which calls were mutual TLS.
		object{"suffix": ".ssl.handshake"},
		object{"suffix": ".ssl.connection_error"},
		// Answers by class, and what is still on its way while draining.
		pattern(`http\.[^.]+\.downstream_rq_([1-5]xx|active|total)`),
		pattern(`http\.inbound[^.]*\.downstream_cx_active`),
		pattern(`listener\..*_15003\.downstream_cx_(active|total)`),
	}}}}
}

func pattern(regex string) object {
	return object{"safe_regex": object{"regex": regex}}
}
