import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = list(grid.get_node_ids())
    sizes = grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes])
    assert [reply.content["about"]["node"] for reply in sizes] == nodes
    assert [reply.metadata.src_node_id for reply in sizes] == nodes
    print("sizes", [reply.content["about"]["size"] for reply in sizes])
    for _ in range(2):
        drawn = grid.send_and_receive([Message(RecordDict(), node, "query.draw") for node in nodes])
        print("drawn", [reply.content["about"]["number"] for reply in drawn])
    value = np.zeros(2)
    for server_round in range(context.run_config["num-server-rounds"]):
        content = RecordDict({"arrays": ArrayRecord({"value": Array(value)})})
        messages = [Message(content, node, "train.mean", group_id=str(server_round)) for node in nodes]
        ids = list(grid.push_messages(messages))
        replies = {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(ids)}
        assert sorted(replies) == sorted(ids)
        value = np.mean([replies[each].content["arrays"]["value"].numpy() for each in ids], axis=0)
    print("value", value.tolist())
