"""The server that speaks as OpenAI's API does, on this machine.

wire            what requests may say, checked; errors in OpenAI's form
gate, guard     who may ask, and how much
calls           of tools, in the text of answers
completion      one answer in the making: from logits to text
engine          a thread for each model, which continues all of its answers together
served, pool    models that are loaded on demand, and leave when nobody asks
library         which models there are
service         finds, loads, asks
answers         how answers are written
app             routes; `chat.html`, the page for chatting
"""
