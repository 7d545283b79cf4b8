"""Guards of the attributes of publications, `info` and `tags`, and of `chan_info`."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["ATTRIBUTES_MUTATIONS"]

UNIT = "tests/unit/protocol/test_attributes.py"
FOREIGN = "tests/unit/delivery/test_foreign.py"
HISTORY = "tests/contract/test_history.py"
BATCHES = "tests/contract/test_history_batches.py"
CLUSTER = "tests/cluster/test_centrifuge_attributes.py"
CHAN_INFO = "tests/cluster/test_centrifuge_chan_info.py"

ATTRIBUTES_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="tags: their size",
        file="services/pubsub/parameters.py",
        old="    if json_size(tags) > TAGS_MAX_BYTES:\n",
        new="    if False:\n",
        argv=test(CLUSTER, "test_tags_are_texts_within_a_bound"),
    ),
    Mutation(
        guard="tags: texts",
        file="services/pubsub/parameters.py",
        old="    if not isinstance(tags, dict) or not all(isinstance(each, str) for each in tags.values()):\n",
        new="    if not isinstance(tags, dict):\n",
        argv=test(CLUSTER, "test_tags_are_texts_within_a_bound"),
    ),
    Mutation(
        guard="tags: those of services too",
        file="services/pubsub/publishing.py",
        old="write_attributes(tags=tags_of(dict(tags)))",
        new="write_attributes(tags=tags)",
        argv=test("tests/unit/services/test_pubsub.py", "test_tags_of_services_are_texts_within_a_bound"),
    ),
    Mutation(
        guard="attributes: one word",
        file="gateway/protocol/attributes.py",
        old='.replace(" ", "\\\\u0020")',
        new="",
        argv=test(UNIT, "test_attributes_are_one_word_and_are_read_as_written"),
    ),
    Mutation(
        guard="attributes: checked before they are written",
        file="gateway/protocol/attributes.py",
        old="    _demand_strict(found)\n    return json",
        new="    return json",
        argv=test(UNIT, "test_attributes_that_no_reply_can_have_are_refused"),
    ),
    Mutation(
        guard="attributes: checked when they are read",
        file="gateway/protocol/attributes.py",
        old="        _demand_strict(found)\n    except",
        new="    except",
        argv=test(UNIT, "test_malformed_attributes_are_none"),
    ),
    Mutation(
        guard="attributes: room for the containers of a reply",
        file="gateway/protocol/attributes.py",
        old="encode_json([[[[[[found]]]]]])",
        new="encode_json(found)",
        argv=test(UNIT, "test_attributes_that_no_reply_can_have_are_refused"),
    ),
    Mutation(
        guard="attributes: publishers cannot claim any",
        file="gateway/protocol/publication.py",
        old="            return Publication(decoded.payload, hint=decoded.position)\n",
        new="            return Publication(decoded.payload, hint=decoded.position, attributes=decoded.attributes)\n",
        argv=test(UNIT, "test_position_that_a_publisher_claims_has_no_attributes"),
    ),
    Mutation(
        guard="attributes: later nodes may add words",
        file="gateway/protocol/publication.py",
        old='    if len(words) > 3 and words[3][:1] == "=":\n',
        new="    if len(words) > 3:\n",
        argv=test(UNIT, "test_further_words_of_later_nodes_are_ignored"),
    ),
    Mutation(
        guard="attributes: only nodes publish them",
        file="gateway/redis/history/appender.py",
        old="        is_bare = history is None and publications[0][0][:1] != MARK\n",
        new="        is_bare = history is None\n",
        argv=test(BATCHES, "test_publications_of_a_batch_have_their_own_attributes_and_selectors"),
    ),
    Mutation(
        guard="attributes: size of a history",
        file="gateway/redis/history/lua/publish.lua",
        old="    if size ~= '0' and number == count then\n",
        new="    if false then\n",
        argv=test(HISTORY, "test_entries_have_their_attributes and redis"),
    ),
    Mutation(
        guard="attributes: bytes of entries after a position",
        file="gateway/redis/history/lua/read.lua",
        old="bytes, payload = bytes + #attributes, {payload, attributes}",
        new="payload = {payload, attributes}",
        argv=test(BATCHES, "test_reads_count_attributes_and_leave_out_what_no_node_writes"),
    ),
    Mutation(
        guard="attributes: their size in entries after a position",
        file="gateway/redis/history/lua/read.lua",
        old="    if attributes and #attributes <= ATTRIBUTES_MAX_BYTES then\n",
        new="    if attributes then\n",
        argv=test(BATCHES, "test_reads_count_attributes_and_leave_out_what_no_node_writes"),
    ),
    Mutation(
        guard="attributes: bytes of a page",
        file="gateway/redis/history/lua/recent.lua",
        old="bytes, payload = bytes + #attributes, {payload, attributes}",
        new="payload = {payload, attributes}",
        argv=test(BATCHES, "test_reads_count_attributes_and_leave_out_what_no_node_writes"),
    ),
    Mutation(
        guard="attributes: their size in a page",
        file="gateway/redis/history/lua/recent.lua",
        old="    if attributes and #attributes <= ATTRIBUTES_MAX_BYTES then\n",
        new="    if attributes then\n",
        argv=test(BATCHES, "test_reads_count_attributes_and_leave_out_what_no_node_writes"),
    ),
    Mutation(
        guard="attributes: bytes of all entries after a position",
        file="gateway/redis/history/store.py",
        old="                size += publication.size\n                since = position\n            if max_bytes",
        new="                size += len(publication.payload)\n                since = position\n            if max_bytes",
        argv=test(HISTORY, "test_entries_have_their_attributes and redis"),
    ),
    Mutation(
        guard="the end of a history is read in one step",
        file="gateway/redis/history/store.py",
        old="top if found or not limit else since",
        new="top",
        argv=test(HISTORY, "test_the_end_of_a_history_is_read_in_one_step"),
    ),
    Mutation(
        guard="a channel that is only read keeps its state",
        file="gateway/redis/history/store.py",
        old="                top = await self.position(key)  # asked in any case",
        new="                top = await self.position(key) if found or not limit else since  # asked",
        argv=test(HISTORY, "test_a_channel_that_is_only_read_keeps_its_state"),
    ),
    Mutation(
        guard="attributes: of the right publications",
        file="gateway/delivery/fan_out.py",
        old="                    valid, values, described = [], [], {}\n",
        new="                    valid, values = [], []\n",
        argv=test(FOREIGN, "test_attributes_are_rendered_with_their_publications_and_others_get_none"),
    ),
    Mutation(
        guard="attributes: no history for clients of Snorky's own protocol",
        file="services/pubsub/history.py",
        old="        has_attributes = request.connection.frontend is not None",
        new="        has_attributes = True",
        argv=test(CLUSTER, "test_replies_to_clients_of_snorkys_own_protocol_have_none"),
    ),
    Mutation(
        guard="attributes: no recovery for clients of Snorky's own protocol",
        file="services/pubsub/replies.py",
        old="    if has_attributes:\n",
        new="    if True:\n",
        argv=test(CLUSTER, "test_replies_to_clients_of_snorkys_own_protocol_have_none"),
    ),
    Mutation(
        guard="attributes: bytes of a reply",
        file="services/pubsub/replies.py",
        old="        size += publication.size\n",
        new="        size += len(publication.payload)\n",
        argv=test(CLUSTER, "test_recovery_that_is_longer_than_a_reply_has_them_too"),
    ),
    Mutation(
        guard="attributes: bytes of the reply to connect",
        file="gateway/http/protocols/centrifuge/client.py",
        old='for each in ("message", *ATTRIBUTES))',
        new='for each in ("message",))',
        argv=test(CLUSTER, "test_reply_to_connect_counts_their_bytes"),
    ),
    Mutation(
        guard="attributes: stored bytes",
        file="gateway/sdk/topics.py",
        old=" + attributes_bytes\n",
        new="\n",
        argv=test(CLUSTER, "test_stored_bytes_count_the_info"),
    ),
    Mutation(
        guard="attributes: a later connection token counts",
        file="gateway/http/protocols/centrifuge/description.py",
        old=" or known[0] is not conn_info",
        new="",
        argv=test(CLUSTER, "test_info_follows_a_later_token"),
    ),
    Mutation(
        guard="attributes: a later subscription token counts",
        file="gateway/http/protocols/centrifuge/description.py",
        old=" or known[1] is not chan_info",
        new="",
        argv=test(CHAN_INFO, "test_presence_joins_leaves_and_publications_have_the_info_of_a_subscription"),
    ),
    Mutation(
        guard="chan_info: claims that look like both infos",
        file="gateway/protocol/attributes.py",
        old="    if chan_info is None and not _is_pair(conn_info):\n",
        new="    if chan_info is None:\n",
        argv=test(UNIT, "test_data_without_chan_info_are_the_conn_info"),
    ),
    Mutation(
        guard="chan_info: not in events about Pusher's members",
        file="gateway/http/protocols/pusher/rendering.py",
        old="infos_in(change.data)[0]",
        new="change.data",
        argv=test(CHAN_INFO, "test_members_of_a_presence_channel_see_the_info_of_the_connection_only"),
    ),
    Mutation(
        guard="chan_info: not in lists of Pusher's members",
        file="gateway/http/protocols/pusher/client.py",
        old='{name: infos_in(data)[0] for name, data in found["members"].items()}',
        new='found["members"]',
        argv=test(CHAN_INFO, "test_members_of_a_presence_channel_see_the_info_of_the_connection_only"),
    ),
    Mutation(
        guard="chan_info: user_info that looks like both infos",
        file="gateway/http/protocols/pusher/client.py",
        old='entry_data(member.get("user_info"))',
        new='member.get("user_info")',
        argv=test(CHAN_INFO, "test_members_of_a_presence_channel_see_the_info_of_the_connection_only"),
    ),
)
